"""Differences in two columns: the old file on the left, the new one on the right."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

from rich.text import Text
from textual.strip import Strip

from kcode.tui.diff import DiffLine, draw_diff
from kcode.tui.draw import strips
from kcode.tui.theme import Look

MIN_WIDTH = 110
"""Narrower screens show one column unless asked: halves of them would wrap most lines of code."""
Pair = tuple[DiffLine | None, DiffLine | None]


def pairs(lines: list[DiffLine]) -> list[Pair]:
    """`lines` of `diff_lines` row by row; lines removed stand beside those that were put in their place."""
    rows: list[Pair] = []
    removed: list[DiffLine] = []
    added: list[DiffLine] = []
    shift = 0
    for line in [*lines, None]:
        if line is not None and line.sign == "+":
            added.append(line)
        elif line is not None and line.sign == "-" and not added:
            removed.append(line)
        else:
            rows += zip_longest(removed, added)
            shift += len(added) - len(removed)
            removed, added = [], []
            if line is not None and line.sign == "-":
                removed.append(line)
            elif line is not None:
                rows.append((replace(line, number=line.number - shift) if line.sign == " " else line, line))
    return rows


def draw_side_by_side(lines: list[DiffLine], path: str, width: int, look: Look) -> list[Strip]:
    """Like `draw_diff`, in two columns; long lines are wrapped within theirs, never cut."""
    half = max(12, (width - 1) // 2)
    digits = max([len(str(line.number)) for line in lines], default=1)
    bar = strips(Text("│", look.faint), 1, look)[0]
    drawn: list[Strip] = []
    for old, new in pairs(lines):
        columns = [draw_diff([line], path, half, look, digits) if line else [] for line in (old, new)]
        for left, right in zip_longest(*columns, fillvalue=Strip.blank(0)):
            drawn.append(Strip.join([left.adjust_cell_length(half), bar, right.adjust_cell_length(half)]))
    return drawn
