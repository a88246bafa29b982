"""Indentation that a call got wrong in one consistent way: shifted, in other units, or trimmed off the first line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

UNITS = ("\t", "  ", "   ", "    ", "        ")


def indent_of(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


@dataclass(frozen=True, slots=True)
class Shift:
    """The same text taken from, or put before, every line."""

    removed: str
    added: str

    def apply(self, indent: str) -> str | None:
        return self.added + indent[len(self.removed) :] if indent.startswith(self.removed) else None


@dataclass(frozen=True, slots=True)
class Rescale:
    """`called` units are `there` units, `levels` more of them; what is left over is alignment by spaces and stays."""

    called: str
    there: str
    levels: int

    def apply(self, indent: str) -> str | None:
        depth, rest = split(indent, self.called)
        if rest.strip(" ") or depth + self.levels < 0:
            return None
        return self.there * (depth + self.levels) + rest


Change = Shift | Rescale


def split(indent: str, unit: str) -> tuple[int, str]:
    """How many units `indent` begins with, and the rest."""
    depth = 0
    while indent.startswith(unit, depth * len(unit)):
        depth += 1
    return depth, indent[depth * len(unit) :]


def changes(pairs: Sequence[tuple[str, str]]) -> list[Change]:
    """Every change that turns the called indentation of all (called, there) pairs into that of the file, likeliest first."""
    if not pairs:
        return []
    if all(called == there for called, there in pairs):
        return [Shift("", "")]
    found: list[Change] = []
    called, there = pairs[0]
    if there.endswith(called):
        found.append(Shift("", there[: len(there) - len(called)]))
    elif called.endswith(there):
        found.append(Shift(called[: len(called) - len(there)], ""))
    # In other units and moved as well is believed only of text that was moved to the very left.
    may_move = any(not indent for indent, _ in pairs)
    rescales: list[Change] = []
    for one in UNITS:
        for other in UNITS:
            depth, rest = split(called, one)
            depth_there, rest_there = split(there, other)
            if rest == rest_there and not rest.strip(" ") and one != other and (may_move or depth == depth_there):
                rescales.append(Rescale(one, other, depth_there - depth))
    rescales.sort(key=lambda change: abs(change.levels) if isinstance(change, Rescale) else 0)
    found += rescales
    return [change for change in found if _explains(change, pairs)]


def _explains(change: Change, pairs: Sequence[tuple[str, str]]) -> bool:
    """Other units are believed of lines that step by one of them. With alignment nearly anything could be explained: it is left
    over only beside lines of whole levels, and never in text that was moved as well."""
    if isinstance(change, Rescale):
        parts = [split(called, change.called) for called, _ in pairs]
        steps = [abs(after - before) for (before, _), (after, _) in pairwise(parts) if after != before]
        is_aligned = any(rest for _, rest in parts)
        is_told = any(depth and not rest for depth, rest in parts)
        if (steps and min(steps) > 1) or (is_aligned and (change.levels or not is_told)):
            return False
    return all(change.apply(called) == there for called, there in pairs)


def unit_of(lines: Sequence[str]) -> str:
    """What one more level adds in a file: the commonest step to the right; "" when nothing is indented."""
    steps: Counter[str] = Counter()
    last = ""
    for line in lines:
        if line.strip():
            indent = indent_of(line)
            if len(indent) > len(last) and indent.startswith(last):
                steps[indent[len(last) :]] += 1
            last = indent
    return steps.most_common(1)[0][0] if steps else ""


def adapted(found: Sequence[Change], new: Sequence[str], unit: str) -> list[str] | None:
    """The indentations of the new lines after the one change that fits, in the order given; None when that cannot be told.

    Where several changes explain the old lines but not to the same effect, the one wins under which the new lines step to the
    right by the file's own unit.
    """
    results: dict[tuple[str, ...], int] = {}
    for change in found:
        mapped = [change.apply(indent) for indent in new]
        if any(indent is None for indent in mapped):
            continue
        result = tuple(indent or "" for indent in mapped)
        results.setdefault(result, odd_steps(result, unit))
    if not results:
        return None
    least = min(results.values())
    best = [result for result, odd in results.items() if odd == least]
    return list(best[0]) if len(best) == 1 else None


def odd_steps(indents: Sequence[str], unit: str) -> int:
    """How many steps to the right are not one unit of the file."""
    return sum(len(after) > len(before) and after != before + unit for before, after in pairwise(indents))
