"""The edit ladder: where `old` stands in a text, tried from exact to tolerant, never ambiguous.

Every rung below "exact" compares whole lines, keeps the number of lines, and must match in exactly one place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Rung = Literal["exact", "trailing whitespace", "indentation", "punctuation"]

PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "),
        "\u2026": "...",
        "\u200b": None,
        "\ufeff": None,
    }
)
# About half a second of comparing.
MAX_COMPARISONS = 1_000_000
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Match:
    """`spans` are (start, end) offsets of what is replaced; `new` is the replacement, adapted to the place."""

    rung: Rung
    spans: tuple[tuple[int, int], ...]
    new: str


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """`old` stands at these 1-based lines, and only one may be meant."""

    rung: Rung
    lines: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Closest:
    """No match: the 1-based lines that resemble `old` most, `similarity` between 0 and 1 (0: nothing does)."""

    first_line: int
    last_line: int
    similarity: float


def locate(text: str, old: str, new: str, *, replace_all: bool = False) -> Match | Ambiguous | Closest:
    """Find `old` in `text` (both with LF line ends). `old` is not empty."""
    count = text.count(old)
    if count == 1 or (count and replace_all):
        return Match("exact", tuple((start, start + len(old)) for start in occurrences(text, old)), new)
    if count:
        return Ambiguous("exact", tuple(text.count("\n", 0, start) + 1 for start in occurrences(text, old)))
    lines = text.split("\n")
    pattern = Pattern.of(old, new)
    for rung, find in RUNGS:
        found = [
            adapted for first in range(len(lines) - len(pattern.old) + 1) if (adapted := find(lines, first, pattern)) is not None
        ]
        if len(found) > 1:
            return Ambiguous(rung, tuple(first + 1 for first, _ in found))
        if found:
            first, replacement = found[0]
            return Match(rung, (line_span(lines, first, pattern),), pattern.joined(replacement))
    return closest(lines, pattern.old)


def occurrences(text: str, old: str) -> list[int]:
    found: list[int] = []
    position = text.find(old)
    while position >= 0:
        found.append(position)
        position = text.find(old, position + len(old))
    return found


@dataclass(frozen=True, slots=True)
class Pattern:
    """`old` and `new` as lines; `whole` when `old` ended with a newline, so that the last line end is replaced too."""

    old: list[str]
    new: list[str]
    whole: bool
    new_ends: bool

    @classmethod
    def of(cls, old: str, new: str) -> Pattern:
        whole = old.endswith("\n") and old != "\n"
        new_ends = new.endswith("\n")
        body = new[:-1] if whole and new_ends else new
        return cls(
            old.removesuffix("\n").split("\n") if whole else old.split("\n"), body.split("\n") if new else [], whole, new_ends
        )

    def joined(self, lines: list[str]) -> str:
        return "\n".join(lines) + ("\n" if self.whole and self.new_ends and lines else "")


def line_span(lines: list[str], first: int, pattern: Pattern) -> tuple[int, int]:
    start = sum(len(line) + 1 for line in lines[:first])
    end = start + sum(len(line) + 1 for line in lines[first : first + len(pattern.old)])
    last = first + len(pattern.old) == len(lines)
    return start, end if pattern.whole and not last else end - 1


Adapted = tuple[int, list[str]] | None


def by_trailing_whitespace(lines: list[str], first: int, pattern: Pattern) -> Adapted:
    for offset, old in enumerate(pattern.old):
        if lines[first + offset].rstrip() != old.rstrip():
            return None
    return first, carried(lines[first : first + len(pattern.old)], pattern, lambda line: line)


def by_indentation(lines: list[str], first: int, pattern: Pattern) -> Adapted:
    """All lines are indented by the same text more, or less, than `old` says."""
    shift: tuple[str, str] | None = None
    for offset, old in enumerate(pattern.old):
        have, want = lines[first + offset].rstrip(), old.rstrip()
        if have.lstrip() != want.lstrip():
            return None
        if not want:
            continue
        this = indent_shift(want[: len(want) - len(want.lstrip())], have[: len(have) - len(have.lstrip())])
        if this is None or (shift is not None and this != shift):
            return None
        shift = this
    if shift is None:
        return None
    removed, added = shift
    if any(line.strip() and not line.startswith(removed) for line in pattern.new):
        return None
    return first, carried(
        lines[first : first + len(pattern.old)],
        pattern,
        lambda line: added + line.removeprefix(removed) if line.strip() else line,
    )


def indent_shift(want: str, have: str) -> tuple[str, str] | None:
    """(removed, added) text at the line's start that turns `want` into `have`; one of them is empty."""
    if have.endswith(want):
        return "", have[: len(have) - len(want)]
    if want.endswith(have):
        return want[: len(want) - len(have)], ""
    return None


def by_punctuation(lines: list[str], first: int, pattern: Pattern) -> Adapted:
    for offset, old in enumerate(pattern.old):
        if lines[first + offset].translate(PUNCTUATION).rstrip() != old.translate(PUNCTUATION).rstrip():
            return None
    return first, carried(lines[first : first + len(pattern.old)], pattern, lambda line: line)


RUNGS: tuple[tuple[Rung, Callable[[list[str], int, Pattern], Adapted]], ...] = (
    ("trailing whitespace", by_trailing_whitespace),
    ("indentation", by_indentation),
    ("punctuation", by_punctuation),
)


def carried(present: list[str], pattern: Pattern, adapt: Callable[[str], str]) -> list[str]:
    """The new lines, where those that `new` only repeats from `old` stay as they are in the file."""
    result: list[str] = []
    matcher = difflib.SequenceMatcher(None, pattern.old, pattern.new, autojunk=False)
    for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if tag == "equal":
            result += present[old_start:old_end]
        else:
            result += [adapt(line) for line in pattern.new[new_start:new_end]]
    return result


def closest(lines: list[str], old: list[str]) -> Closest:
    """The window of as many lines as `old` whose lines share most words with its lines, place by place."""
    wanted = [frozenset(WORD.findall(line)) for line in old]
    if len(lines) * len(old) > MAX_COMPARISONS:
        # Only the wordiest lines of `old` are compared: they tell places apart best.
        kept = sorted(range(len(old)), key=lambda index: -len(wanted[index]))[: max(MAX_COMPARISONS // len(lines), 1)]
        wanted = [words if index in kept else frozenset() for index, words in enumerate(wanted)]
    have = [frozenset(WORD.findall(line)) for line in lines]
    weights = [len(words) for words in wanted]
    best, best_first = 0.0, 0
    size = min(len(old), len(lines))
    offsets = [offset for offset in range(size) if wanted[offset]]
    for first in range(len(lines) - size + 1):
        score = 0.0
        for offset in offsets:
            one, other = wanted[offset], have[first + offset]
            if other:
                score += weights[offset] * len(one & other) / len(one | other)
        if score > best:
            best, best_first = score, first
    return Closest(best_first + 1, best_first + size, best / max(sum(weights), 1))
