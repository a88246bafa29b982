"""A page to read, over the conversation."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from kcode.tui.clean import one_line
from kcode.tui.widgets.sheet import Draw, Sheet


class PagerScreen(ModalScreen[None]):
    """Up, Down, PgUp, PgDn scroll; Escape, q or Enter closes."""

    DEFAULT_CSS = """
    PagerScreen {
        align: center middle;
        & > Vertical { background: $surface; border: round $primary; width: 96%; height: 92%; padding: 0 1; }
        & .title { text-style: bold; color: $primary; }
        & .foot { color: $foreground 50%; }
        & Sheet { height: 1fr; margin: 1 0; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,ctrl+c", "close", show=False)]

    def __init__(self, title: str, draw: Draw) -> None:
        super().__init__()
        self._heading = one_line(title)
        self._draw = draw

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(self._heading), classes="title")
            yield Sheet(self._draw)
            yield Static(Text("↑ ↓ PgUp PgDn scroll · Esc closes"), classes="foot")

    def on_mount(self) -> None:
        self.query_one(Sheet).focus()

    def action_close(self) -> None:
        self.dismiss(None)
