"""The transcript: a tall page of lines, of which only the visible ones are ever touched."""

from __future__ import annotations

import time
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.timer import Timer

from kcode.tui.blocks import Block
from kcode.tui.lines import Page
from kcode.tui.theme import Look, look_of

FRAME_S = 1 / 30
SLICE_S = 0.02
SOON_S = 0.001
BUSY_SHARE = 3
"""A redraw that took t seconds is followed by the next no sooner than BUSY_SHARE * t, so that typing is never starved."""


class Transcript(ScrollView, can_focus=True):
    """Follows its end while the end is in view. Changes are drawn at most every FRAME_S; idle, it has no timer.

    Focused, Up and Down walk over foldable parts and Enter folds or unfolds one; a click does the same.
    """

    DEFAULT_CSS = """
    Transcript {
        height: 1fr;
        background: $background;
        scrollbar-size-vertical: 1;
        scrollbar-color: $panel;
        scrollbar-background: $background;
        overflow-x: hidden;
        overflow-y: scroll;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "walk(-1)", show=False),
        Binding("down", "walk(1)", show=False),
        Binding("enter,space", "fold", show=False),
        Binding("home", "scroll_home", show=False),
        Binding("end", "scroll_end", show=False),
    ]

    class Left(Message):
        """The user typed text or pressed Escape here: the prompt wants the focus. `character` is "" for Escape."""

        def __init__(self, character: str) -> None:
            super().__init__()
            self.character = character

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.page = Page()
        self._look: Look | None = None
        self._due: Timer | None = None
        self._follows = True
        self._cost_s = 0.0
        self._drawn_at = 0.0
        self._chosen: Block | None = None

    @property
    def look(self) -> Look:
        if self._look is None:
            self._look = look_of(self.app.theme_variables)
        return self._look

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, lambda _: self.restyle())

    def restyle(self) -> None:
        """Draw all in the colours of the present theme."""
        self._look = None
        self.page.touch_all()
        self._plan()

    def add(self, *blocks: Block) -> None:
        for block in blocks:
            self.page.add(block)
        self._plan()

    def add_first(self, block: Block) -> None:
        self.page.add_first(block)
        self._plan()

    def changed(self, block: Block) -> None:
        """A block that was added has changed; it is drawn with the next frame."""
        self.page.touch(block)
        self._plan()

    def clear(self) -> None:
        self.page.clear()
        self._chosen = None
        self._follows = True
        self._plan()

    def fold_all(self) -> None:
        """Unfold every part, or fold all when nothing foldable is folded."""
        foldable = [block for block in self.page.blocks if block.foldable]
        expand = not all(getattr(block, "expanded", True) for block in foldable)
        for block in foldable:
            block.toggle(expand)
        self.page.touch_all()
        self._plan()

    def action_fold(self) -> None:
        if self._chosen is not None:
            self._chosen.toggle()
            self.changed(self._chosen)

    def action_walk(self, step: int) -> None:
        """Move to the next foldable part; past the last one go back to the prompt."""
        numbers = [number for number, block in enumerate(self.page.blocks) if block.foldable]
        chosen = next((number for number in numbers if self.page.blocks[number] is self._chosen), None)
        if chosen is None:
            target = len(numbers) - 1
        else:
            target = numbers.index(chosen) + step
        if target >= len(numbers):
            self.post_message(self.Left(""))
            return
        if numbers and target >= 0:
            self._chosen = self.page.blocks[numbers[target]]
            top = self.page.span(numbers[target]).start
            if not self.scroll_offset.y <= top < self.scroll_offset.y + self.size.height:
                self.scroll_to(y=max(0, top - self.size.height // 3), animate=False, immediate=True)
            self.refresh()

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape" or (event.is_printable and event.character and event.key not in {"space"}):
            event.stop()
            self.post_message(self.Left("" if event.key == "escape" else event.character or ""))

    def on_click(self, event: events.Click) -> None:
        number = self.page.block_at(event.y + self.scroll_offset.y)
        if number is None or event.y + self.scroll_offset.y not in self.page.span(number):
            return
        block = self.page.blocks[number]
        if block.foldable and not self.screen.get_selected_text():
            self._chosen = block
            block.toggle()
            self.changed(block)

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self._chosen = None
        self.refresh()

    def on_resize(self) -> None:
        self.page.touch_all()
        self._flush()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._follows = new_value >= self.max_scroll_y

    def render_line(self, y: int) -> Strip:
        row = y + self.scroll_offset.y
        width = self.size.width
        strip = self.page.line(row) or Strip.blank(0)
        selection = self.text_selection
        strip = strip.adjust_cell_length(width).apply_style(self.rich_style)
        if self._chosen is not None and self.has_focus:
            number = self.page.block_at(row)
            if number is not None and self.page.blocks[number] is self._chosen and row in self.page.span(number):
                bar = Strip([Segment("▌", self.look.accent)])
                strip = Strip.join([bar, strip.crop(1, width)])
        if selection is not None:
            strip = self._selected(strip, selection.get_span(row))
        return strip.apply_offsets(0, row)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        lines = [line.text if (line := self.page.line(y)) else "" for y in range(self.page.height)]
        text = selection.extract("\n".join(lines))
        return "\n".join(line.rstrip() for line in text.split("\n")), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def _selected(self, strip: Strip, span: tuple[int, int] | None) -> Strip:
        if span is None:
            return strip
        begin, end = span
        style: Style = self.screen.get_component_rich_style("screen--selection")
        first = strip.index_to_cell_position(begin)
        last = strip.cell_length if end == -1 else strip.index_to_cell_position(end)
        return Strip.join([strip.crop(0, first), strip.crop(first, last).apply_style(style), strip.crop(last)])

    def _plan(self) -> None:
        """Soon after a rest, else when the next frame is due."""
        if self._due is None and self.is_mounted:
            due = self._drawn_at + max(FRAME_S, self._cost_s * BUSY_SHARE)
            self._due = self.set_timer(max(SOON_S, due - time.perf_counter()), self._flush)

    def _flush(self) -> None:
        if self._due is not None:
            self._due.stop()
            self._due = None
        if self.size.width == 0:
            return
        began = time.perf_counter()
        top = self.scroll_offset.y
        anchor = self.page.block_at(top)
        above = self.page.span(anchor).start if anchor is not None else 0
        visible = range(top, top + self.size.height)
        follows = self._follows
        wanted = range(self.page.height, self.page.height + self.size.height) if follows else visible
        settled = self.page.settle(self.size.width, self.look, SLICE_S, wanted)
        self.virtual_size = Size(self.size.width, self.page.height + 1)
        if follows:
            self.scroll_end(animate=False, immediate=True, x_axis=False)
            self._follows = True
        elif anchor is not None:
            moved = self.page.span(anchor).start - above
            if moved:
                self.scroll_to(y=top + moved, animate=False, immediate=True)
        self.refresh()
        self._drawn_at = time.perf_counter()
        self._cost_s = self._drawn_at - began
        if not settled:
            # The rest waits no longer than this slice took: typing gets every other slice.
            self._due = self.set_timer(self._cost_s, self._flush)
