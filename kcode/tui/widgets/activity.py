"""One line above the prompt: what kcode is doing now, or a hint when it waits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text
from textual.timer import Timer
from textual.widget import Widget

from kcode.tui.figures import bar_text, clock_text
from kcode.tui.theme import Look, look_of

if TYPE_CHECKING:
    from kcode.events import Prefill

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAME_S = 0.12


@dataclass(frozen=True, slots=True)
class Doing:
    """`phrase` is what happens; `prefill` is shown as a bar."""

    phrase: str
    prefill: Prefill | None = None


class Activity(Widget):
    """The only widget with a timer, and only while it works. Its size never changes, so a frame costs no layout."""

    DEFAULT_CSS = """
    Activity { height: 1; background: $background; padding: 0 1; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.hint = ""
        self._doing: Doing | None = None
        self._began = 0.0
        self._timer: Timer | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def start(self, phrase: str) -> None:
        self._began = time.monotonic()
        self._doing = Doing(phrase)
        if self._timer is None:
            self._timer = self.set_interval(FRAME_S, self.refresh)
        self.refresh()

    def show(self, doing: Doing) -> None:
        if self._timer is not None:
            self._doing = doing

    def stop(self) -> None:
        self._doing = None
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        self.refresh()

    def tell(self, hint: str) -> None:
        """A line for idle times."""
        if hint != self.hint:
            self.hint = hint
            self.refresh()

    def render(self) -> Text:
        look = look_of(self.app.theme_variables)
        width = self.content_size.width
        if self._doing is None:
            text = Text(self.hint, look.dim, no_wrap=True)
        else:
            text = self._working(self._doing, width, look)
        text.truncate(width, overflow="ellipsis")
        return text

    def _working(self, doing: Doing, width: int, look: Look) -> Text:
        frame = FRAMES[int(self.elapsed_s / FRAME_S) % len(FRAMES)]
        text = Text.assemble((f"{frame} ", look.accent), (doing.phrase, look.text), no_wrap=True)
        if doing.prefill is not None:
            text.append_text(_prefill(doing.prefill, width, look))
        text.append(f"  {clock_text(self.elapsed_s)}", look.dim)
        text.append("  esc interrupts", look.faint)
        if self.hint:
            text.append(f"  {self.hint}", look.dim)
        return text


def _prefill(prefill: Prefill, width: int, look: Look) -> Text:
    """The bar and the numbers, fewer of them where there is little room."""
    text = Text("  ")
    cells = 20 if width >= 100 else 10
    text.append(bar_text(prefill.done, prefill.total, cells), look.accent)
    text.append(f" {prefill.done:,}/{prefill.total:,} tokens", look.dim)
    if width >= 80 and prefill.cached:
        text.append(f" · {prefill.cached:,} cached", look.dim)
    if prefill.rate > 0:
        if width >= 110:
            text.append(f" · {prefill.rate:,.0f}/s", look.dim)
        left = (prefill.total - prefill.done) / prefill.rate
        if left >= 1:
            text.append(f" · {clock_text(left)} left", look.dim)
    return text
