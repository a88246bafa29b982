"""A key that counts when it is pressed twice."""

from __future__ import annotations

import time

WINDOW_S = 2.0


class Twice:
    """Two presses within WINDOW_S; the first arms it."""

    def __init__(self) -> None:
        self._armed_at = float("-inf")

    @property
    def is_armed(self) -> bool:
        return time.monotonic() - self._armed_at < WINDOW_S

    def press(self) -> bool:
        """Whether it was the second press, after which the next is a first one again."""
        was_armed = self.is_armed
        self._armed_at = float("-inf") if was_armed else time.monotonic()
        return was_armed
