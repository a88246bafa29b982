"""`/stats`: what a conversation has cost so far, from its records: tokens of each step as columns, calls by their tool."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.text import Text
from textual.strip import Strip

from kcode.model import Usage
from kcode.transcript import Answered, Record, Said, Turn
from kcode.tui.blocks import MARGIN, Block, Listing, Remark
from kcode.tui.draw import margin, strips
from kcode.tui.figures import bar_text, duration_text, quantity
from kcode.tui.theme import Look

COLUMNS = 60
ROWS = 5
EIGHTHS = " ▁▂▃▄▅▆▇█"
CACHED = "░"
BAR_CELLS = 20


class Columns:
    """Values as columns, each of a `lower` part and the rest of its whole; `words` say what they are.

    Where there are more than fit, each column is the largest of as many neighbours.
    """

    revision = 0
    compact = False
    foldable = False

    def __init__(self, words: str, values: Sequence[tuple[int, int]], rows: int) -> None:
        self._words = words
        self._values = values
        self._rows = rows

    def toggle(self, expanded: bool | None = None) -> None:
        return

    def draw(self, width: int, look: Look) -> list[Strip]:
        values = _fitting(self._values, max(1, min(COLUMNS, width - 16)))
        most = max((whole for _, whole in values), default=0)
        lines = strips(Text(self._words, look.dim), max(8, width - len(MARGIN)), look)
        for row in reversed(range(self._rows)):
            line = Text(no_wrap=True)
            for lower, whole in values:
                sign, is_lower = _cell(lower, whole, most, row, self._rows)
                line.append(sign, look.dim if is_lower else look.accent)
            label = f" {most:,}" if row == self._rows - 1 else " 0" if row == 0 else ""
            line.append(label, look.faint)
            lines += strips(line, max(8, width - len(MARGIN)), look)
        return margin(lines, MARGIN, MARGIN, look.text)


def stats_blocks(records: Sequence[Record]) -> list[Block]:
    """The whole in a sentence, then the plots; only the sentence where there is nothing to plot."""
    steps = [record.usage for record in records if isinstance(record, Said) and record.usage is not None]
    turns = sum(isinstance(record, Turn) for record in records)
    total = sum(steps, start=Usage())
    read, cached = total.prompt_tokens, total.cached_tokens
    share = f" ({cached / read:.0%})" if read else ""
    told = (
        f"{quantity(len(steps), 'step')} in {quantity(turns, 'turn')}: {read:,} tokens read, {cached:,} of them cached{share}, "
        f"{total.completion_tokens:,} written"
    )
    blocks: list[Block] = [Remark("i", told, "accent")]
    if read:
        prompts = [(usage.cached_tokens, usage.prompt_tokens) for usage in steps]
        blocks.append(Columns(f"tokens read by each step: █ new, {CACHED} cached", prompts, ROWS))
        blocks.append(Columns("tokens written by each step", [(0, usage.completion_tokens) for usage in steps], 2))
    calls = _calls(records)
    return [*blocks, Listing(calls)] if calls else blocks


def _calls(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Each tool, the most called first: a bar, how often, how long in all, how often it failed."""
    answers = [record for record in records if isinstance(record, Answered)]
    names = {record.result.name for record in answers}
    by_tool = {name: [record for record in answers if record.result.name == name] for name in names}
    rows: list[tuple[str, str]] = []
    for name, made in sorted(by_tool.items(), key=lambda item: (-len(item[1]), item[0])):
        failed = sum(record.result.is_error for record in made)
        took = duration_text(sum(record.duration_s for record in made))
        bar = bar_text(len(made), len(answers), BAR_CELLS)
        rows.append((name, f"{bar} {quantity(len(made), 'call')}, {took}" + (f", {failed} failed" if failed else "")))
    return rows


def _fitting(values: Sequence[tuple[int, int]], columns: int) -> list[tuple[int, int]]:
    if len(values) <= columns:
        return list(values)
    bounds = [at * len(values) // columns for at in range(columns + 1)]
    return [max(values[begin:end], key=lambda value: value[1]) for begin, end in pairwise(bounds)]


def _cell(lower: int, whole: int, most: int, row: int, rows: int) -> tuple[str, bool]:
    """The sign of a column in a row counted from below, and whether it belongs to the lower part."""
    eighths = rows * 8
    filled = min(8, max(0, -(-whole * eighths // max(most, 1)) - row * 8))
    if filled and (lower >= whole or lower * eighths // max(most, 1) >= row * 8 + 8):
        return CACHED, True
    # The cell in which the lower part ends is the upper's, so that it is seen however small it is.
    return EIGHTHS[filled], False
