"""The place of the model in the server: empty while it loads, then filled once; and how busy it is."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from kcode_backend.http.errors import RequestRefused

if TYPE_CHECKING:
    from kcode_backend.serving import Serving


class Slot:
    """Used on the event loop's thread alone."""

    def __init__(self, name: str) -> None:
        self.name = name
        """The model's id as clients see it."""
        self.serving: Serving | None = None
        self.active = 0
        """Requests under way."""
        self.idle_since_s = time.monotonic()
        self._loaded = asyncio.Event()
        self._failure: str | None = None

    def fill(self, serving: Serving) -> None:
        self.serving = serving
        self.idle_since_s = time.monotonic()
        self._loaded.set()

    def fail(self, message: str) -> None:
        """The model could not be loaded: everyone who waits is told."""
        self._failure = message
        self._loaded.set()

    async def ready(self) -> Serving:
        """The loaded model; waits for the load. Raises RequestRefused when the load failed."""
        await self._loaded.wait()
        if self.serving is None:
            raise RequestRefused(503, "model_not_loaded", self._failure or "the model is not loaded")
        return self.serving

    def begin(self) -> None:
        self.active += 1

    def end(self) -> None:
        self.active -= 1
        self.idle_since_s = time.monotonic()
