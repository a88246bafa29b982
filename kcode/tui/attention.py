"""What a person who looks elsewhere is told by the terminal: its title, and a call when something waits for them.

The sequences are those of xterm (OSC 2 with its stack of titles), iTerm2 (OSC 9) and urxvt (OSC 777); a terminal ignores those
that it does not know, and rings for the bell.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Literal, Protocol

from kcode.tui.clean import one_line

State = Literal["idle", "working", "asking"]
Notifications = Literal["on", "bell", "off"]
BELL = "\a"
BEGIN = "\x1b[22;2t"
END = "\x1b]2;\a\x1b[23;2t"
"""The title as it was; where the terminal kept none, an empty one."""
SIGNS: Mapping[State, str] = {"idle": "", "working": "● ", "asking": "? "}
LONG_S = 10.0
"""A turn of which the end is told though it is not known whether anybody looks."""
MAX_CHARS = 120


class Screened(Protocol):
    """The terminal: what is told it, and whether it has the keyboard; None where it never said."""

    @property
    def is_watched(self) -> bool | None: ...

    def tell_terminal(self, sequence: str) -> None: ...


class Attention:
    """Calls the person who is not looking, and keeps the title. `BEGIN` and `END` are written by who owns the terminal."""

    def __init__(
        self, terminal: Screened, workspace: str, notifications: Notifications, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._terminal = terminal
        self._project = one_line(PurePath(workspace).name or workspace)
        self._notifications = notifications
        self._speaks_777 = "VTE_VERSION" in environment or environment.get("TERM", "").startswith(("foot", "rxvt"))
        self._title = ""

    def show(self, state: State) -> None:
        """The title: a sign for what it does, the project, the program."""
        title = f"{SIGNS[state]}{self._project} · kcode"
        if title != self._title:
            self._title = title
            self._terminal.tell_terminal(f"\x1b]2;{title}\a")

    def asked(self, what: str) -> None:
        """A question waits."""
        self._call(f"asks: {what}", even_if_unknown=True)

    def ended(self, how: str, duration_s: float) -> None:
        """A turn is over."""
        self._call(how, even_if_unknown=duration_s >= LONG_S)

    def _call(self, text: str, *, even_if_unknown: bool) -> None:
        watched = self._terminal.is_watched
        if self._notifications == "off" or watched or (watched is None and not even_if_unknown):
            return
        # Who may be looking at it is not shown what stands on the screen as well.
        shown = "" if self._notifications == "bell" or watched is None else self._notification(one_line(text)[:MAX_CHARS])
        self._terminal.tell_terminal(shown + BELL)

    def _notification(self, text: str) -> str:
        if self._speaks_777:
            title = f"kcode · {self._project}".replace(";", ",")
            return f"\x1b]777;notify;{title};{text}\a"
        return f"\x1b]9;kcode · {self._project}: {text}\a"
