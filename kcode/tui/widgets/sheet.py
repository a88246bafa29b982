"""A scrolled page of lines that are drawn once for a width."""

from __future__ import annotations

from collections.abc import Callable

from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from kcode.tui.theme import Look, look_of

Draw = Callable[[int, Look], list[Strip]]


class Sheet(ScrollView, can_focus=True):
    DEFAULT_CSS = """
    Sheet {
        scrollbar-size-vertical: 1;
        scrollbar-color: $primary 40%;
        scrollbar-background: $surface;
        overflow-x: hidden;
        background: $surface;
    }
    """

    def __init__(self, draw: Draw, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._draw = draw
        self._lines: list[Strip] = []

    def on_resize(self) -> None:
        self._lines = self._draw(max(1, self.size.width), look_of(self.app.theme_variables))
        self.virtual_size = Size(self.size.width, len(self._lines))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        at = y + self.scroll_offset.y
        line = self._lines[at] if at < len(self._lines) else Strip.blank(0)
        return line.adjust_cell_length(self.size.width).apply_style(self.rich_style)
