"""Stop texts: where an answer is cut, although tokens do not end where the text does."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes text on and holds back what may be the beginning of a stop text. After `hit` nothing more is passed."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.hit = False

    @property
    def active(self) -> bool:
        """There are stop texts to look for."""
        return bool(self._stops)

    def push(self, text: str) -> str:
        """The text that is certainly before any stop text."""
        if self.hit or not self._stops:
            return "" if self.hit else text
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.hit = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        at = len(self._held) - keep
        text, self._held = self._held[:at], self._held[at:]
        return text

    def finish(self) -> str:
        """What was held back in vain."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a true beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
