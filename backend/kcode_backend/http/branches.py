"""The generations of one request: begun together, followed together, ended together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kcode_backend.engine.request import Event, Failed, Finished, Generation, Prefilled, Sink
from kcode_backend.errors import OutOfContext
from kcode_backend.http.errors import RequestRefused

if TYPE_CHECKING:
    from kcode_backend.engine.engine import Engine

HEARTBEAT_S = 1.0
"""A stream is never silent for longer."""

_STOPPED = RequestRefused(503, "shutting_down", "the server is shutting down and the answer is not complete; ask again later")


@dataclass(frozen=True, slots=True)
class Branch:
    """One generation. With `after` it begins when the prompt of that other one is in the cache, where it finds it."""

    generation: Callable[[Sink], Generation]
    after: int | None = None


class Branches:
    """Used on the event loop's thread alone. `close` has to be called in the end, whatever happened."""

    def __init__(self, engine: Engine, branches: Sequence[Branch], opened: set[Branches]) -> None:
        """`opened` is where a server that shuts down finds what is under way. Raises RequestRefused for a prompt too long."""
        self._engine = engine
        self._branches = branches
        self._opened = opened
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()
        self._tickets: dict[int, int] = {}
        self._begun: set[int] = set()
        opened.add(self)
        try:
            for index, branch in enumerate(branches):
                if branch.after is None:
                    self._submit(index)
        except OutOfContext as error:
            self.close()
            raise RequestRefused(413, "context_length_exceeded", str(error)) from error

    async def next(self) -> tuple[int, Event] | None:
        """The next event and the index of its branch; None after a while without any.

        Raises RequestRefused when the engine failed or the server is shutting down.
        """
        try:
            # wait_for would swallow a cancellation that comes together with an event.
            async with asyncio.timeout(HEARTBEAT_S):
                found = await self._events.get()
        except TimeoutError:
            return None
        if found is None:
            raise _STOPPED
        index, event = found
        match event:
            case Failed(message):
                raise RequestRefused(500, "engine_failed", message)
            case Prefilled(done, total) if done >= total:
                self._follow(index)
            case Finished():
                self._tickets.pop(index, None)
                self._follow(index)
            case _:
                pass
        return found

    def end(self, index: int) -> None:
        """Stop computing one; harmless when it is over."""
        ticket = self._tickets.pop(index, None)
        if ticket is not None:
            self._engine.cancel(ticket)

    def stop(self) -> None:
        """Whoever follows is told that the server is shutting down."""
        self._events.put_nowait(None)

    def close(self) -> None:
        """Cancel what is not over."""
        self._opened.discard(self)
        for index in list(self._tickets):
            self.end(index)

    def _submit(self, index: int) -> None:
        def sink(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        self._tickets[index] = self._engine.submit(self._branches[index].generation(sink))

    def _follow(self, leader: int) -> None:
        for index, branch in enumerate(self._branches):
            if branch.after == leader and index not in self._begun:
                self._begun.add(index)
                self._submit(index)
