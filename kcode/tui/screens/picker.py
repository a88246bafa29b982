"""One of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from kcode.tui.clean import one_line
from kcode.tui.theme import look_of

FOOT = "↑ ↓ choose · type to search · Enter takes it · Esc closes"


@dataclass(frozen=True, slots=True)
class Choice:
    key: str
    title: str
    note: str = ""


class PickerScreen(ModalScreen[str | None]):
    """Ends with the key of the choice, or None on Escape. What is typed leaves the choices that have all of its words."""

    DEFAULT_CSS = """
    PickerScreen {
        align: center middle;
        & > Vertical {
            background: $surface;
            border: round $primary;
            width: 80%;
            max-width: 110;
            height: auto;
            max-height: 80%;
            padding: 0 1;
        }
        & .title { text-style: bold; color: $primary; margin-bottom: 1; }
        & .foot { color: $foreground 50%; margin-top: 1; }
        & OptionList, & OptionList:focus { height: auto; max-height: 100%; border: none; background: $surface; padding: 0; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,ctrl+c", "close", show=False)]

    def __init__(self, title: str, choices: Sequence[Choice]) -> None:
        super().__init__()
        self._heading = title
        self._choices = choices
        self._typed = ""

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(self._heading), classes="title")
            yield OptionList(*self._options())
            yield Static(Text(FOOT), classes="foot")

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()

    def on_key(self, event: Key) -> None:
        if event.key == "backspace":
            self._typed = self._typed[:-1]
        elif event.is_printable and event.character is not None:
            self._typed += event.character
        else:
            return
        event.stop()
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options(self._options())
        options.highlighted = 0 if options.option_count else None
        found = f"{options.option_count} with {self._typed!r} · Backspace" if self._typed else FOOT
        self.query_one(".foot", Static).update(Text(found))

    def _options(self) -> list[Option]:
        look = look_of(self.app.theme_variables)
        words = self._typed.casefold().split()
        options: list[Option] = []
        for choice in self._choices:
            if not all(word in f"{choice.title} {choice.note}".casefold() for word in words):
                continue
            text = Text(one_line(choice.title), no_wrap=True, overflow="ellipsis")
            text.append(f"  {one_line(choice.note)}" if choice.note else "", look.dim)
            options.append(Option(text, id=choice.key))
        return options

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_close(self) -> None:
        self.dismiss(None)
