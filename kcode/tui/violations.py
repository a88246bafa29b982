"""What the sandbox stopped, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.strip import Strip

from kcode.tui.clean import one_line
from kcode.tui.draw import strips
from kcode.tui.theme import Look
from kcode_sandbox.violation import Violation


def draw_violations(violations: Sequence[Violation], width: int, look: Look) -> list[Strip]:
    """Newest last; each with its rule and what was advised."""
    lines: list[Strip] = []
    for number, violation in enumerate(violations, 1):
        head = Text.assemble((f"{number:>3} ", look.dim), (f"{violation.kind:<8}", look.warning), one_line(violation.what))
        lines += strips(head, width, look)
        lines += strips(Text(f"    {one_line(violation.rule)}; {one_line(violation.advice)}", look.dim), width, look)
    return lines
