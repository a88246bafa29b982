"""Text from models, files and commands, made safe for a terminal.

What comes out holds no control characters but newlines: escape sequences (colours, titles, clipboard writes, cursor moves) are
dropped, a carriage return rewrites its line as a terminal would, and characters that reorder or hide text are spelled out,
so that a command shown for approval is the command that runs.
"""

from __future__ import annotations

import re

ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\|$)"  # OSC: titles, clipboard, links
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\|$)"  # DCS, SOS, PM, APC
    r"|\x1b\[[0-?]*[ -/]*(?:[@-~]|$)"  # CSI: colours, cursor
    r"|\x1b[ -/]*[0-~]?"  # the short ones
    r"|\x9b[0-?]*[ -/]*(?:[@-~]|$)|\x9d[^\x07\x9c]*(?:[\x07\x9c]|$)"  # the same in C1
)
BACKSPACES = re.compile(r"[^\x08\n]\x08")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DECEIVING = re.compile(r"[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\u061c]")
SUSPECT = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\u061c]")
TAB_SIZE = 4


def clean(text: str) -> str:
    """`text` without anything that a terminal would act on; tabs become spaces."""
    if not SUSPECT.search(text):
        return text
    text = ESCAPES.sub("", text)
    while "\b" in text:
        shorter = BACKSPACES.sub("", text)
        if shorter == text:
            break
        text = shorter
    if "\r" in text:
        text = "\n".join(_overwritten(line) for line in text.replace("\r\n", "\n").split("\n"))
    text = text.expandtabs(TAB_SIZE)
    text = CONTROLS.sub("", text)
    return DECEIVING.sub(lambda found: f"<U+{ord(found.group()):04X}>", text)


def one_line(text: str) -> str:
    """`text` cleaned, on one line."""
    return " ".join(clean(text).split())


def _overwritten(line: str) -> str:
    """What stays visible of a line written over itself with carriage returns (progress bars)."""
    pieces = [piece for piece in line.split("\r") if piece]
    return pieces[-1] if pieces else ""
