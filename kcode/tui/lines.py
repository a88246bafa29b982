"""The transcript as one tall page of lines: which block stands where, and what each line looks like.

Drawing is lazy and kept: a block is drawn again only when its revision, the width or the look changed. After a change of width
only the asked-for part is drawn at once; the rest is settled in slices by `settle`.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from dataclasses import dataclass, field

from textual.strip import Strip

from kcode.tui.blocks import Block
from kcode.tui.theme import Look


@dataclass(slots=True)
class _Row:
    block: Block
    top: int = 0
    lines: list[Strip] = field(default_factory=list[Strip])
    key: tuple[int, int, Look] | None = None


class Page:
    """Blocks in order, one blank line between two unless both are compact. `height` counts the lines of all."""

    def __init__(self) -> None:
        self.height = 0
        self._rows: list[_Row] = []
        self._tops: list[int] = []
        self._unsettled: set[int] = set()
        self._numbers: dict[int, int] = {}

    @property
    def blocks(self) -> list[Block]:
        return [row.block for row in self._rows]

    @property
    def is_settled(self) -> bool:
        return not self._unsettled

    def add(self, block: Block) -> None:
        self._rows.append(_Row(block, self.height))
        self._tops.append(self.height)
        self._numbers[id(block)] = len(self._rows) - 1
        self._unsettled.add(len(self._rows) - 1)

    def add_first(self, block: Block) -> None:
        """Above all others; they move down with the next `settle`."""
        self._rows.insert(0, _Row(block))
        self._tops.insert(0, 0)
        self._numbers = {id(row.block): number for number, row in enumerate(self._rows)}
        self._unsettled = {0} | {number + 1 for number in self._unsettled}

    def clear(self) -> None:
        self.__init__()

    def touch(self, block: Block) -> None:
        """Say that a block of this page has changed; one that is not here is ignored."""
        number = self._numbers.get(id(block))
        if number is not None:
            self._unsettled.add(number)

    def touch_all(self) -> None:
        self._unsettled = set(range(len(self._rows)))

    def settle(self, width: int, look: Look, budget_s: float, visible: range) -> bool:
        """Draw what changed: at once the blocks on `visible` lines, then the newest first for about `budget_s`.

        A `visible` range that reaches the end stands for as many of the last lines. True when all is drawn.
        """
        if not self._unsettled:
            return True
        deadline = time.perf_counter() + budget_s
        lowest = (
            self._settle_end(width, look, len(visible)) if visible.stop >= self.height else self._settle_at(width, look, visible)
        )
        for number in sorted(self._unsettled, reverse=True):
            if time.perf_counter() > deadline:
                break
            lowest = min(lowest, self._settle_one(number, width, look))
        if lowest < len(self._rows):
            self._place(lowest)
        return not self._unsettled

    def line(self, y: int) -> Strip | None:
        """The line at `y`, None for a blank one."""
        number = self.block_at(y)
        if number is None:
            return None
        row = self._rows[number]
        at = y - row.top
        return row.lines[at] if 0 <= at < len(row.lines) else None

    def block_at(self, y: int) -> int | None:
        """The number of the block whose lines, or the blank line below them, hold `y`; None outside."""
        if not self._rows or y < 0:
            return None
        return max(0, bisect_right(self._tops, y) - 1)

    def span(self, number: int) -> range:
        """The lines of a block."""
        row = self._rows[number]
        return range(row.top, row.top + len(row.lines))

    def _settle_end(self, width: int, look: Look, lines: int) -> int:
        lowest = len(self._rows)
        for number in range(len(self._rows) - 1, -1, -1):
            lowest = min(lowest, self._settle_one(number, width, look))
            lines -= len(self._rows[number].lines)
            if lines <= 0:
                break
        return lowest

    def _settle_at(self, width: int, look: Look, visible: range) -> int:
        first, last = self.block_at(visible.start) or 0, self.block_at(visible.stop) or 0
        return min((self._settle_one(number, width, look) for number in range(first, last + 1)), default=len(self._rows))

    def _settle_one(self, number: int, width: int, look: Look) -> int:
        """Draw a block if it changed; its number if later blocks may have moved, else a number past the last."""
        self._unsettled.discard(number)
        row = self._rows[number]
        key = (row.block.revision, width, look)
        if row.key == key:
            return len(self._rows)
        before, was_new = len(row.lines), row.key is None
        row.lines, row.key = row.block.draw(width, look), key
        return number if was_new or before != len(row.lines) else len(self._rows)

    def _place(self, lowest: int) -> None:
        start = max(0, lowest - 1)
        for number in range(start, len(self._rows)):
            row = self._rows[number]
            if number == 0:
                row.top = 0
                continue
            above = self._rows[number - 1]
            gap = 0 if (above.block.compact and row.block.compact) or not above.lines else 1
            row.top = above.top + len(above.lines) + gap
        self._tops = [row.top for row in self._rows]
        self.height = self._rows[-1].top + len(self._rows[-1].lines) if self._rows else 0
