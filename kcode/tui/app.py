"""The terminal interface. The App sets the theme and shows the chat screen; it decides nothing."""

from __future__ import annotations

from pathlib import Path

from textual.app import App

from kcode.tui.port import Launch, ModelStore, Sessions
from kcode.tui.screens.chat import ChatScreen
from kcode.tui.theme import DARK, LIGHT


class KcodeApp(App[None]):
    """Ends when the user leaves."""

    TITLE = "kcode"
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self,
        launch: Launch,
        sessions: Sessions,
        store: ModelStore | None = None,
        state_dir: Path | None = None,
        *,
        theme: str = DARK.name,
    ) -> None:
        super().__init__()
        self._launch = launch
        self._sessions = sessions
        self._store = store
        self._state_dir = state_dir
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = theme

    def on_mount(self) -> None:
        self.push_screen(ChatScreen(self._launch, self._sessions, self._store, self._state_dir))


def run(
    launch: Launch, sessions: Sessions, store: ModelStore | None = None, state_dir: Path | None = None, *, theme: str = DARK.name
) -> int:
    """Show the interface until the user leaves; the exit code. History is kept in `state_dir`, None keeps none.

    `store` is None when a server outside decides on the models.
    """
    app = KcodeApp(launch, sessions, store, state_dir, theme=theme)
    app.run()
    return app.return_code or 0
