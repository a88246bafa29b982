"""The list of commands that fit what is typed."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget

from kcode.tui.commands import Command
from kcode.tui.theme import look_of


class Completions(Widget):
    """Empty, it takes no room."""

    DEFAULT_CSS = """
    Completions { height: auto; display: none; padding: 0 1; background: $surface; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._commands: list[Command] = []
        self._at = 0

    @property
    def chosen(self) -> Command | None:
        return self._commands[self._at] if self._commands else None

    def offer(self, commands: list[Command]) -> None:
        if commands != self._commands:
            self._commands, self._at = commands, 0
            self.display = bool(commands)
            self.refresh(layout=True)

    def move(self, step: int) -> None:
        if self._commands:
            self._at = (self._at + step) % len(self._commands)
            self.refresh()

    def render(self) -> Text:
        look = look_of(self.app.theme_variables)
        rows: list[Text] = []
        for number, command in enumerate(self._commands):
            here = number == self._at
            row = Text.assemble(
                ("❯ " if here else "  ", look.accent),
                (f"/{command.name}".ljust(10), look.bold if here else look.text),
                (command.summary, look.dim),
                no_wrap=True,
            )
            rows.append(row)
        return Text("\n").join(rows)
