"""The model's list of what is to be done, as it was last written; hidden until it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual.widget import Widget

from kcode.tui.clean import one_line
from kcode.tui.theme import look_of

if TYPE_CHECKING:
    from kcode.events import Event
    from kcode.transcript import Record

TOOL = "todo"
SHOWN = 12
SIGNS = {"[x]": "✓", "[>]": "▸", "[ ]": "○"}


class Todos(Widget):
    """At most SHOWN lines: what is done leaves first."""

    DEFAULT_CSS = """
    Todos { height: auto; display: none; padding: 0 1; background: $background; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: tuple[str, ...] = ()

    def show(self, event: Event) -> None:
        from kcode.events import CallFinished, PlainDisplay

        if isinstance(event, CallFinished) and event.call.name == TOOL and isinstance(event.display, PlainDisplay):
            self._tell(event.display.text)

    def replay(self, records: Sequence[Record]) -> None:
        """The list of a conversation that was had before."""
        from kcode.events import PlainDisplay
        from kcode.transcript import Answered

        lists = [
            record.display.text
            for record in records
            if isinstance(record, Answered) and record.result.name == TOOL and isinstance(record.display, PlainDisplay)
        ]
        self._tell(lists[-1] if lists else "")

    def toggle(self) -> None:
        self.display = not self.display

    def render(self) -> Text:
        look = look_of(self.app.theme_variables)
        shown = list(self._lines)
        while len(shown) > SHOWN and any(line.startswith("[x]") for line in shown):
            shown.remove(next(line for line in shown if line.startswith("[x]")))
        done = sum(line.startswith("[x]") for line in self._lines)
        head = f"To-dos: {done} of {len(self._lines)} done" if self._lines else "No to-dos yet"
        rows = [Text(f"{head} · Ctrl+T hides", look.dim)]
        for line in shown[:SHOWN]:
            mark, text = line[:3], one_line(line[4:])
            style = look.dim if mark == "[x]" else look.accent if mark == "[>]" else look.text
            row = Text(f" {SIGNS[mark]} {text}", style, no_wrap=True)
            row.truncate(max(1, self.content_size.width), overflow="ellipsis")
            rows.append(row)
        if len(shown) > SHOWN:
            rows.append(Text(f" ⋯ and {len(shown) - SHOWN} more", look.dim))
        return Text("\n").join(rows)

    def _tell(self, text: str) -> None:
        lines = tuple(line for line in text.splitlines() if line[:3] in SIGNS)
        if lines != self._lines:
            self._lines = lines
            self.refresh(layout=True)
