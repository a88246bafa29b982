"""The edit ladder: where `old` stands in a text, tried from exact to tolerant, never ambiguous.

Every rung below "exact" compares whole lines, keeps the number of lines, and must match in exactly one place. A text that
would have to be guessed (two places, two readings of the new indentation) is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kcode.tools.alike import Typography, carry, differs_in_tabs_alone, normal, spaced
from kcode.tools.closest import Closest, closest
from kcode.tools.indents import Rescale, Shift, adapted, changes, indent_of, unit_of

Rung = Literal["exact", "trailing whitespace", "indentation", "punctuation", "tabs", "blank lines"]


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


def locate(text: str, old: str, new: str, *, replace_all: bool = False) -> Match | Ambiguous | Closest:
    """Find `old` in `text` (both with LF line ends). `old` is not empty."""
    places = occurrences(text, old)
    if len(places) == 1 and not (old[0] in " \t" and is_within_indent(text, places[0])):
        return Match("exact", ((places[0], places[0] + len(old)),), new)
    if places and replace_all:
        return Match("exact", tuple((start, start + len(old)) for start in apart(places, len(old))), new)
    if len(places) > 1:
        return Ambiguous("exact", tuple(text.count("\n", 0, start) + 1 for start in places))
    return by_lines(text, old, new) or closest(text.removesuffix("\n").split("\n"), Pattern.of(old, new).old)


def by_lines(text: str, old: str, new: str) -> Match | Ambiguous | None:
    """The rungs below "exact"."""
    if not old.strip():
        return None
    lines = Lines.of(text)
    pattern = Pattern.of(old, new)
    found = climb(lines, pattern, None)
    if found is None and (trimmed := pattern.without_blank_edges()) is not None:
        found = climb(lines, trimmed, "blank lines")
    return found


def is_within_indent(text: str, start: int) -> bool:
    """Whether only blanks stand before `start` in its line, and some do: what begins there says nothing of its depth."""
    before = text[text.rfind("\n", 0, start) + 1 : start]
    return bool(before) and not before.strip(" \t")


def occurrences(text: str, old: str) -> list[int]:
    """Where `old` begins, also where it overlaps itself: "x x" stands in "x x x" twice."""
    found: list[int] = []
    position = text.find(old)
    while position >= 0:
        found.append(position)
        position = text.find(old, position + 1)
    return found


def apart(places: list[int], length: int) -> Iterator[int]:
    """The first of those that overlap."""
    end = 0
    for start in places:
        if start >= end:
            yield start
            end = start + length


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of a text without their ends; `ended` when the last one has one."""

    all: list[str]
    ended: bool
    unit: str

    @classmethod
    def of(cls, text: str) -> Lines:
        lines = text.removesuffix("\n").split("\n")
        return cls(lines, text.endswith("\n"), unit_of(lines))

    def span(self, first: int, count: int, *, with_end: bool) -> tuple[int, int]:
        """Offsets of `count` lines from `first`; `with_end` takes the last one's end too, where it has one."""
        start = sum(len(line) + 1 for line in self.all[:first])
        end = start + sum(len(line) + 1 for line in self.all[first : first + count])
        ends = with_end and (self.ended or first + count < len(self.all))
        return start, end if ends else end - 1


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

    def joined(self, lines: list[str], *, ended: bool) -> str:
        return "\n".join(lines) + ("\n" if self.whole and self.new_ends and lines and ended else "")

    def without_blank_edges(self) -> Pattern | None:
        """Without empty lines before and after `old` that the file may not have; the same number goes from `new`."""
        before = edge(self.old)
        after = edge(self.old[::-1])
        if not before and not after:
            return None
        new = self.new[min(before, edge(self.new)) :]
        new = new[: len(new) - min(after, edge(new[::-1]))]
        return Pattern(self.old[before : len(self.old) - after], new, self.whole, self.new_ends)


def edge(lines: Sequence[str]) -> int:
    """How many blank lines stand at the beginning."""
    return next((count for count, line in enumerate(lines) if line.strip()), len(lines))


@dataclass(frozen=True, slots=True)
class Way:
    """One rung: lines match when their `key` is the same; `shifts` when their indentation may differ as a whole."""

    rung: Rung
    key: Callable[[str], str]
    shifts: bool = False
    tabs: bool = False


def _plain(line: str) -> str:
    return line.rstrip()


def _stripped(line: str) -> str:
    return line.strip()


def _typographic(line: str) -> str:
    return normal(line).rstrip()


def _typographic_stripped(line: str) -> str:
    return normal(line).strip()


WAYS = (
    Way("trailing whitespace", _plain),
    Way("indentation", _stripped, shifts=True),
    Way("punctuation", _typographic),
    Way("punctuation", _typographic_stripped, shifts=True),
    Way("tabs", spaced, shifts=True, tabs=True),
)


def climb(lines: Lines, pattern: Pattern, rung: Rung | None) -> Match | Ambiguous | None:
    """The first rung on which `pattern` matches somewhere; `rung` names the result otherwise than the rung does."""
    for way in WAYS:
        wanted = [way.key(line) for line in pattern.old]
        places = [first for first in windows([way.key(line) for line in lines.all], wanted) if agrees(lines, first, pattern, way)]
        if not places:
            continue
        name = rung or way.rung
        replacements = [(first, new) for first in places if (new := replacement(lines, first, pattern, way)) is not None]
        if len(places) > 1:
            return Ambiguous(name, tuple(first + 1 for first in places))
        if replacements:
            ((first, new),) = replacements
            start, end = lines.span(first, len(pattern.old), with_end=pattern.whole)
            ended = lines.ended or first + len(pattern.old) < len(lines.all)
            return Match(name, ((start, end),), pattern.joined(new, ended=ended))
    return None


def windows(have: list[str], wanted: list[str]) -> Iterator[int]:
    """Where the lines `wanted` stand in `have`."""
    for first in range(len(have) - len(wanted) + 1):
        if have[first] == wanted[0] and have[first : first + len(wanted)] == wanted:
            yield first


def agrees(lines: Lines, first: int, pattern: Pattern, way: Way) -> bool:
    """Whether what the key left out may differ in this place."""
    present = lines.all[first : first + len(pattern.old)]
    if way.tabs and not all(
        differs_in_tabs_alone(there.strip(), called.strip()) for there, called in zip(present, pattern.old, strict=True)
    ):
        return False
    return not way.shifts or bool(indent_changes(present, pattern))


def indent_changes(present: list[str], pattern: Pattern) -> Changes | None:
    """What turns the called indentation into the file's; None when nothing consistent does."""
    pairs = [(indent_of(called), indent_of(there)) for called, there in zip(pattern.old, present, strict=True) if called.strip()]
    called, there = pairs[0] if pairs else ("", "")
    is_shorter = there != called and there.endswith(called)
    if is_shorter and pattern.old[0].strip() and len(pairs) > 1 and all(one == other for one, other in pairs[1:]):
        # A first line that lost its indentation alone, as text does that was trimmed as a whole.
        return Changes((Shift("", ""),), (called, there))
    found = changes(pairs)
    return Changes(tuple(found)) if found else None


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of indentation that explain the old lines; `first` is the first line's, (called, there), if it differs alone."""

    of_lines: tuple[Shift | Rescale, ...]
    first: tuple[str, str] | None = None

    def indents(self, pattern: Pattern, unit: str) -> list[str] | None:
        """The indentation of every new line; blank ones have none. None when it would be a guess."""
        new = [line for line in pattern.new if line.strip()]
        if self.first is not None and new and pattern.new[0].strip():
            if indent_of(new[0]) != self.first[0]:
                return None
            rest = adapted(self.of_lines, [indent_of(line) for line in new[1:]], unit)
            kept = None if rest is None else [self.first[1], *rest]
        else:
            kept = adapted(self.of_lines, [indent_of(line) for line in new], unit)
        if kept is None:
            return None
        following = iter(kept)
        return [next(following) if line.strip() else "" for line in pattern.new]


def replacement(lines: Lines, first: int, pattern: Pattern, way: Way) -> list[str] | None:
    """The new lines as they fit the place: those that only repeat `old` stay as they are in the file."""
    present = lines.all[first : first + len(pattern.old)]
    indents: list[str] | None = None
    if way.shifts:
        found = indent_changes(present, pattern)
        indents = found.indents(pattern, lines.unit) if found else None
        if indents is None:
            return None
    typography = Typography()
    for there, called in zip(present, pattern.old, strict=True):
        typography.learn(there.strip(), called.strip())
    result: list[str] = []
    matcher = difflib.SequenceMatcher(None, pattern.old, pattern.new, autojunk=False)
    for tag, start, end, new_start, new_end in matcher.get_opcodes():
        if tag == "equal":
            result += present[start:end]
            continue
        for index in range(new_start, new_end):
            line = pattern.new[index]
            paired = start + index - new_start
            body = line.lstrip(" \t") if indents is not None and line.strip() else line
            if paired < end:
                called, there = pattern.old[paired].rstrip(), present[paired].rstrip()
                if indents is not None:
                    called, there = called.lstrip(" \t"), there.lstrip(" \t")
                body = carry(there, called, body, typography)
            else:
                body = typography.plain(body)
            result.append(indents[index] + body if indents is not None and line.strip() else body)
    return result
