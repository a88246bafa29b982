"""Where the user writes: Enter sends, Shift+Enter or Ctrl+J starts a line, Up and Down walk the history."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from kcode.tui.clean import clean
from kcode.tui.history import History


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
    ]

    class Sent(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Ended(Message):
        """Ctrl+D where nothing is typed."""

    class Recalled(Message):
        """Up where nothing is typed and messages wait to be sent."""

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

    def put(self, text: str) -> None:
        """Replace the text, the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    async def _on_paste(self, event: events.Paste) -> None:
        self._take(event)
        self.replace(clean(event.text.replace("\r\n", "\n").replace("\r", "\n")), *self.selection)

    def _may_recall(self) -> bool:
        """Walking keeps walking; a text of one's own is left only from its very first place."""
        return self.text == self._recalled or not self.text or self.document.line_count == 1

    def _recall(self, entry: str | None) -> None:
        if entry is not None:
            self._recalled = entry
            self.put(entry)

    def _send(self) -> None:
        text = self.text.strip()
        if text:
            self._history.add(text)
            self._recalled = None
            self.put("")
            self.post_message(self.Sent(text))

    def _take(self, event: events.Event) -> None:
        event.stop()
        event.prevent_default()
