"""Text from outside made fit to be shown: on a terminal, in the log of a CI job, as a title, in Markdown."""

from __future__ import annotations

import re
import unicodedata

from kcode.tools.truncate import head_and_tail, plain

TITLE_CHARS = 72
# What a runner would take for an order of the job's own: GitHub's two forms, and Azure's.
ORDERS = re.compile(r"##(?=\[|vso\[)")
REFERENCE = re.compile(r"#(?=\d)|\bGH-(?=\d)", re.IGNORECASE)
MARKUP = str.maketrans({"[": "(", "]": ")", "<": "'", ">": "'", "`": "'", "|": "/", "\\": "/", "*": "'"})


def visible(text: str) -> str:
    """`text` without escape sequences, control characters and those that turn the direction of writing or cannot be seen."""
    return "".join(char for char in plain(text) if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co"})


def one_line(text: str, limit: int = 300) -> str:
    line = " ".join(visible(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def harmless(text: str, limit: int = 2000) -> str:
    """One line in which no CI runner finds an order, as long as it does not begin the line."""
    return ORDERS.sub("# #", one_line(text, limit))


def log_line(text: str) -> str:
    """One line for standard error that no CI runner obeys."""
    return f"kcode: {harmless(text)}"


def title_of(text: str) -> str:
    """For a commit or a pull request: it mentions nobody, closes nothing, skips nothing and is no markup."""
    line = one_line(REFERENCE.sub("no. ", text.replace("@", "(at)"))).translate(MARKUP)
    return line if len(line) <= TITLE_CHARS else f"{line[: TITLE_CHARS - 1].rstrip()}…"


def fenced(text: str, limit: int, kind: str = "text") -> str:
    """A block of code in Markdown that the text cannot end: in it nothing is markup, and nobody is mentioned.

    A line that begins with a slash, which GitLab may take for an order, is moved by a space.
    """
    shown = re.sub(r"^/", " /", head_and_tail(visible(text).strip("\n"), limit), flags=re.MULTILINE)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}{kind}\n{shown}\n{fence}"


def code_span(text: str) -> str:
    """A word or path in Markdown's code type."""
    shown = one_line(text, 200)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    tick = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{tick}{pad}{shown}{pad}{tick}"
