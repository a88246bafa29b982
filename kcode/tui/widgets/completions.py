"""The list of what fits what is typed."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

from kcode.tui.clean import one_line
from kcode.tui.completing import Suggestion
from kcode.tui.theme import look_of

LABEL_CELLS = 10
SHOWN = 10


class Completions(Widget):
    """At most SHOWN at a time, around the chosen one; empty, it takes no room."""

    DEFAULT_CSS = """
    Completions { height: auto; display: none; padding: 0 1; background: $surface; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._offered: list[Suggestion] = []
        self._at = 0

    @property
    def chosen(self) -> Suggestion | None:
        return self._offered[self._at] if self._offered else None

    def offer(self, suggestions: list[Suggestion]) -> None:
        if suggestions != self._offered:
            self._offered, self._at = suggestions, 0
            self.display = bool(suggestions)
            self.refresh(layout=True)

    def move(self, step: int) -> None:
        if self._offered:
            self._at = (self._at + step) % len(self._offered)
            self.refresh(layout=True)

    def render(self) -> Text:
        look = look_of(self.app.theme_variables)
        width = max(1, self.content_size.width)
        rows: list[Text] = []
        first = max(0, min(self._at - SHOWN // 2, len(self._offered) - SHOWN))
        for number, suggestion in enumerate(self._offered[first : first + SHOWN], first):
            here = number == self._at
            row = Text.assemble(
                ("❯ " if here else "  ", look.accent),
                (one_line(suggestion.label).ljust(LABEL_CELLS), look.bold if here else look.text),
                (suggestion.note, look.dim),
                no_wrap=True,
            )
            row.truncate(width, overflow="ellipsis")
            rows.append(row)
        hidden = len(self._offered) - len(rows)
        if hidden:
            rows.append(Text(f"  ⋯ {hidden} more", look.dim))
        return Text("\n").join(rows)
