"""The place of the model in the server: empty while it loads, then filled once; what goes on there, and its end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kcode_backend.http.branches import Branches
from kcode_backend.http.errors import RequestRefused
from kcode_backend.http.metrics import RequestCounts

if TYPE_CHECKING:
    from kcode_backend.serving import Serving


@dataclass(frozen=True, slots=True)
class Room:
    """What a request needs of the server: the loaded model, its name for clients, and where to report."""

    serving: Serving
    name: str
    counts: RequestCounts
    opened: set[Branches]


class Slot:
    """Used on the event loop's thread alone."""

    def __init__(self, name: str) -> None:
        self.name = name
        """The model's id as clients see it."""
        self.serving: Serving | None = None
        self.active = 0
        """Requests under way."""
        self.idle_since_s = time.monotonic()
        self.created = int(time.time())
        self.counts = RequestCounts()
        self._opened: set[Branches] = set()
        self._loaded = asyncio.Event()
        self._failure: str | None = None
        self._stopped = False

    def fill(self, serving: Serving) -> None:
        self.serving = serving
        self.idle_since_s = time.monotonic()
        self._loaded.set()

    def fail(self, message: str) -> None:
        """The model could not be loaded: everyone who waits is told."""
        self._failure = message
        self._loaded.set()

    def stop(self) -> None:
        """The server ends now: what is under way ends with an error that says so, and nothing new begins."""
        self._stopped = True
        self._loaded.set()
        for branches in list(self._opened):
            branches.stop()

    async def ready(self) -> Room:
        """Waits for the load. Raises RequestRefused when there is no model to ask."""
        await self._loaded.wait()
        if self._stopped:
            raise RequestRefused(503, "shutting_down", "the server is shutting down")
        if self.serving is None:
            raise RequestRefused(503, "model_not_loaded", self._failure or "the model is not loaded")
        return Room(self.serving, self.name, self.counts, self._opened)

    def begin(self) -> None:
        self.active += 1

    def end(self) -> None:
        self.active -= 1
        self.idle_since_s = time.monotonic()
