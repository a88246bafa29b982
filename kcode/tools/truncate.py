"""The limits of what a tool result may hold, and the ways to keep to them. Every cut says what was cut."""

from __future__ import annotations

import re

MAX_FILE_BYTES = 10 << 20
READ_LINES = 2000
READ_CHARS = 50_000
LINE_CHARS = 2000
OUTPUT_CHARS = 10_000
GREP_LINES = 200
LISTING_ENTRIES = 200
TEST_CHARS = 2500

# CSI, OSC/DCS/APC strings, two-byte escapes; then any other control character but newline and tab.
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """`text` as a screen would leave it: no escape sequences, a line rewritten with \\r only in its last form."""
    text = ESCAPES.sub("", text).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return CONTROLS.sub("", text)


def clip_line(line: str, limit: int = LINE_CHARS) -> str:
    """One line, cut at `limit` characters with the number of characters that are missing."""
    if len(line) <= limit:
        return line
    return f"{line[:limit]}… [{len(line) - limit} more characters in this line]"


def head_and_tail(text: str, limit: int = OUTPUT_CHARS, where: str = "") -> str:
    """At most `limit` characters of `text`, half from each end at line breaks where possible, plus a notice.

    `where` ends the notice, e.g. "; the whole output is in /tmp/x".
    """
    if len(text) <= limit:
        return text
    head, tail = text[: limit // 2], text[-(limit - limit // 2) :]
    if "\n" in head[limit // 4 :]:
        head = head[: head.rindex("\n") + 1]
    if "\n" in tail[: limit // 4]:
        tail = tail[tail.index("\n") + 1 :]
    cut = len(text) - len(head) - len(tail)
    lines = text.count("\n", len(head), len(text) - len(tail))
    joint = "" if head.endswith("\n") else "\n"
    return f"{head}{joint}[… {cut} characters ({lines} lines) left out{where} …]\n{tail}"


def numbered(lines: list[str], first: int) -> str:
    """Lines with their 1-based numbers and a tab, as `read` shows them; over-long lines are cut."""
    return "\n".join(f"{number}\t{clip_line(line)}" for number, line in enumerate(lines, first))
