"""The messages that wait for the running turn to end."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.widget import Widget

from kcode.tui.clean import one_line
from kcode.tui.theme import look_of

SHOWN = 3


class Queued(Widget):
    """One line per message, at most SHOWN; empty, it takes no room."""

    DEFAULT_CSS = """
    Queued { height: auto; display: none; padding: 0 1; background: $background; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._texts: tuple[str, ...] = ()

    def tell(self, texts: Sequence[str]) -> None:
        if tuple(texts) != self._texts:
            self._texts = tuple(texts)
            self.display = bool(texts)
            self.refresh(layout=True)

    def render(self) -> Text:
        look = look_of(self.app.theme_variables)
        width = self.content_size.width
        rows: list[Text] = []
        for text in self._texts[:SHOWN]:
            row = Text.assemble(("⋯ next: ", look.accent), (one_line(text), look.dim), no_wrap=True)
            row.truncate(max(1, width), overflow="ellipsis")
            rows.append(row)
        if len(self._texts) > SHOWN:
            rows[-1] = Text(f"⋯ and {len(self._texts) - SHOWN + 1} more", look.dim)
        return Text("\n").join(rows)
