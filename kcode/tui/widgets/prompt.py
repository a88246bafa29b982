"""Where the user writes: Enter sends, Shift+Enter or Ctrl+J starts a line, Up and Down walk the history.

A large paste is shown as a chip, `[pasted 120 lines #1]`, and is sent as it was.
"""

from __future__ import annotations

import re
from typing import ClassVar

from textual import events
from textual.app import App
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from kcode.errors import ConfigError
from kcode.tui.clean import clean
from kcode.tui.editor import edited
from kcode.tui.figures import quantity
from kcode.tui.history import History

CHIP_LINES = 12
CHIP_CHARS = 2000
"""What is pasted and larger than this becomes a chip."""


class Prompt(TextArea):
    """A text area as tall as its text, up to a third of the screen.

    While `completing` is true, Up, Down, Tab and Enter belong to the completion list and come out as Complete messages; while
    `has_waiting` is true, Up on the empty prompt asks for the waiting messages.
    """

    DEFAULT_CSS = """
    Prompt {
        height: auto;
        min-height: 1;
        max-height: 12;
        border: none;
        padding: 0;
        background: $surface;
        scrollbar-size-vertical: 1;
        &:focus { border: none; }
        & .text-area--cursor { background: $primary; color: $background; }
        & .text-area--placeholder { color: $foreground 40%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("shift+enter,ctrl+j,alt+enter", "newline", show=False),
        Binding("ctrl+r", "search", show=False),
        Binding("ctrl+g", "edit", show=False),
    ]

    class Sent(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Ended(Message):
        """Ctrl+D where nothing is typed."""

    class Recalled(Message):
        """Up where nothing is typed and messages wait to be sent."""

    class Searched(Message):
        """Ctrl+R: earlier messages are searched, or no longer."""

    class Complete(Message):
        """A key for the completion list: "up", "down", "tab" or "enter"."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(self, history: History, *, placeholder: str, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            tab_behavior="focus",
            show_line_numbers=False,
            highlight_cursor_line=False,
            compact=True,
            placeholder=placeholder,
        )
        self.cursor_blink = False
        self.completing = False
        self.has_waiting = False
        self._history = history
        self._recalled: str | None = None
        self._pasted: dict[str, str] = {}

    def on_key(self, event: events.Key) -> None:
        if self.completing and event.key in {"up", "down", "tab", "enter"}:
            self._take(event)
            self.post_message(self.Complete(event.key))
        elif event.key == "enter":
            self._take(event)
            self._send()
        elif event.key == "ctrl+d" and not self.text:
            self._take(event)
            self.post_message(self.Ended())
        elif event.key == "up" and self.has_waiting and not self.text:
            self._take(event)
            self.post_message(self.Recalled())
        elif event.key == "up" and self.cursor_location[0] == 0 and self._may_recall():
            self._take(event)
            self._recall(self._history.back(self.text))
        elif event.key == "down" and self.cursor_at_last_line and self._may_recall():
            self._take(event)
            self._recall(self._history.forth())

    def action_newline(self) -> None:
        self.insert("\n")

    def action_search(self) -> None:
        self.post_message(self.Searched())

    def action_edit(self) -> None:
        """The message as a file in the user's editor."""
        app: App[None] = self.app
        try:
            self.put(edited(app, self._whole()))
        except ConfigError as error:
            self.notify(str(error), severity="warning", markup=False)

    @property
    def before_cursor(self) -> str:
        """The cursor's line up to the cursor."""
        row, column = self.cursor_location
        return self.document.get_line(row)[:column]

    def replace_before(self, count: int, text: str) -> None:
        """Put `text` in the place of the `count` characters before the cursor, all of one line."""
        row, column = self.cursor_location
        self.replace(text, (row, column - count), (row, column))

    def put(self, text: str) -> None:
        """Replace the text, the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    async def _on_paste(self, event: events.Paste) -> None:
        self._take(event)
        text = clean(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        lines = text.count("\n") + 1
        if lines > CHIP_LINES or len(text) > CHIP_CHARS:
            chip = f"[pasted {quantity(lines, 'line')} #{len(self._pasted) + 1}]"
            self._pasted[chip] = text
            text = chip
        self.replace(text, *self.selection)

    def _whole(self) -> str:
        """The text with what its chips stand for."""
        if not self._pasted:
            return self.text
        chips = "|".join(map(re.escape, self._pasted))
        return re.sub(chips, lambda found: self._pasted[found.group()], self.text)

    def _may_recall(self) -> bool:
        """Walking keeps walking; a text of one's own is left only from its very first place."""
        return self.text == self._recalled or not self.text or self.document.line_count == 1

    def _recall(self, entry: str | None) -> None:
        if entry is not None:
            self._recalled = entry
            self.put(entry)

    def _send(self) -> None:
        text = self._whole().strip()
        if text:
            self._pasted.clear()
            self._history.add(text)
            self._recalled = None
            self.put("")
            self.post_message(self.Sent(text))

    def _take(self, event: events.Event) -> None:
        event.stop()
        event.prevent_default()
