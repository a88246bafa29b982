"""The terminal interface. The App sets the theme and shows the chat screen; it decides nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from textual.app import App
from textual.screen import Screen

from kcode.errors import ConfigError
from kcode.tui.attention import BEGIN, END, Attention
from kcode.tui.port import Launch, ModelStore, Sessions
from kcode.tui.screens.chat import ChatScreen
from kcode.tui.theme import DARK, LIGHT


class KcodeApp(App[None]):
    """Ends when the user leaves."""

    TITLE = "kcode"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    TextArea:nocolor .text-area--cursor, Input:nocolor .input--cursor { text-style: reverse; }
    OptionList:nocolor > .option-list--option-highlighted { text-style: reverse; }
    """

    def __init__(
        self,
        launch: Launch,
        sessions: Sessions,
        store: ModelStore | None = None,
        state_dir: Path | None = None,
        *,
        theme: str = "",
    ) -> None:
        # Textual greys colours out for NO_COLOR unless it leaves them to the terminal; then it sends none, as is asked for.
        super().__init__(ansi_color="NO_COLOR" in os.environ or None)
        self._launch = launch
        self._sessions = sessions
        self._store = store
        self._state_dir = state_dir
        self._tells_focus = False
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        if theme and theme not in self.available_themes:
            raise ConfigError(f"theme {theme!r} is unknown; there are {', '.join(sorted(self.available_themes))}")
        self.theme = theme or DARK.name

    def get_default_screen(self) -> Screen[None]:
        """The chat screen itself: Textual's blank one would be drawn in full before it."""
        attention = Attention(self, self._launch.workspace, self._launch.notifications)
        return ChatScreen(self._launch, self._sessions, self._store, self._state_dir, attention)

    @property
    def is_watched(self) -> bool | None:
        """Whether the terminal has the keyboard; None until it has said so once."""
        return self.app_focus if self._tells_focus else None

    def tell_terminal(self, sequence: str) -> None:
        """Write what is no part of the picture."""
        if self._driver is not None:
            self._driver.write(sequence)

    def on_app_focus(self) -> None:
        self._tells_focus = True

    def on_app_blur(self) -> None:
        self._tells_focus = True


def run(
    launch: Launch, sessions: Sessions, store: ModelStore | None = None, state_dir: Path | None = None, *, theme: str = ""
) -> int:
    """Show the interface until the user leaves; the exit code. Raises ConfigError for an unknown theme.

    `store` is None when the models are not ours to choose: a server's, a script's. History is kept in `state_dir`, None keeps
    none.
    """
    app = KcodeApp(launch, sessions, store, state_dir, theme=theme)
    terminal = sys.__stderr__
    if terminal is not None:
        terminal.write(BEGIN)
        terminal.flush()
    try:
        app.run()
    finally:
        if terminal is not None:
            terminal.write(END)
            terminal.flush()
    return app.return_code or 0
