"""Where a text that is not in a file was probably meant: the lines that resemble it most, and how they differ."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kcode.tools.alike import spaced

# About half a second of comparing.
MAX_COMPARISONS = 1_000_000
# A line of `old` may stand this many lines off its place: lines were added or taken away before it.
DRIFT = 3
NUMBERED = re.compile(r"^\s*\d+(?:\t|: ?|\| ?| {2,})")
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Closest:
    """No match: the 1-based lines that resemble `old` most, `similarity` between 0 and 1 (0: nothing does).

    `differing` is the first line of them that `old` has otherwise, 0 when there is none to name.
    """

    first_line: int
    last_line: int
    similarity: float
    differing: int = 0


def closest(lines: list[str], old: Sequence[str]) -> Closest:
    """The place where most of `old` stands, line by line, weighed by how much each line says."""
    old = as_meant(old)
    wanted = [spaced(line) for line in old]
    have = [spaced(line) for line in lines]
    words = [frozenset(WORD.findall(line)) for line in wanted]
    places: defaultdict[str, list[int]] = defaultdict(list)
    for index, line in enumerate(have):
        places[line].append(index)
    offsets = [offset for offset in range(len(old)) if words[offset]]
    if len(lines) * len(offsets) > MAX_COMPARISONS:
        # Only the wordiest lines of `old` are compared: they tell places apart best.
        offsets = sorted(offsets, key=lambda offset: -len(words[offset]))[: max(MAX_COMPARISONS // len(lines), 1)]
    shared = [frozenset(WORD.findall(line)) for line in have]
    scores = [0.0] * (len(lines) + len(old))
    for offset in offsets:
        best = line_scores(offset, words[offset], shared, places[wanted[offset]], len(scores))
        for first, score in best.items():
            scores[first] += score * len(words[offset])
    weight = sum(len(words[offset]) for offset in offsets)
    first = max(range(len(lines)), key=lambda index: (scores[index], -index), default=0)
    if not weight or not scores[first]:
        return Closest(1, min(len(old), len(lines)), 0.0)
    return region(have, wanted, first, min(scores[first] / weight, 1.0))


def line_scores(
    offset: int, words: frozenset[str], shared: list[frozenset[str]], equal: list[int], size: int
) -> dict[int, float]:
    """By the window's first line: how well one line of `old` is found at its place, or a little off it."""
    best: dict[int, float] = {}
    for index, other in enumerate(shared):
        first = index - offset
        if first >= 0 and (common := len(words & other)):
            best[first] = 0.8 * common / len(words | other)
    for index in equal:
        for drift in range(-DRIFT, DRIFT + 1):
            first = index - offset + drift
            if 0 <= first < size:
                best[first] = max(best.get(first, 0.0), 1.0 - 0.1 * abs(drift))
    return best


def region(have: list[str], wanted: list[str], first: int, similarity: float) -> Closest:
    """The window at `first`, reaching as far as lines of `old` that stand a little off their place."""
    size = len(have)
    low, high = min(first, size - 1), min(first + len(wanted), size) - 1
    for offset, line in enumerate(wanted):
        if not line:
            continue
        near = [index for index in range(first + offset - DRIFT, first + offset + DRIFT + 1) if 0 <= index < size]
        found = [index for index in near if have[index] == line]
        if found and first + offset not in found:
            low, high = min(low, *found), max(high, *found)
    differing = next(
        (first + offset + 1 for offset, line in enumerate(wanted) if first + offset < size and have[first + offset] != line),
        0,
    )
    return Closest(low + 1, high + 1, similarity, differing)


def as_meant(old: Sequence[str]) -> list[str]:
    """`old` without what commonly slips in: line numbers copied from what `read` shows, line ends written as \\n."""
    if has_numbers(old):
        return [NUMBERED.sub("", line, count=1) for line in old]
    if len(old) == 1 and "\\n" in old[0]:
        return old[0].removesuffix("\\n").split("\\n")
    return list(old)


def has_numbers(old: Sequence[str]) -> bool:
    lines = [line for line in old if line]
    return bool(lines) and all(NUMBERED.match(line) for line in lines)
