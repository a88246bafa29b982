"""Calls of one step that run at the same time, and the moments at which they take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from typing import TypeVar

from kcode.messages import ToolCall

TOGETHER = frozenset({"task"})
"""Tools of which calls that follow each other in one step run at the same time."""
ResultT = TypeVar("ResultT")


def groups(calls: Sequence[ToolCall]) -> Iterator[tuple[ToolCall, ...]]:
    """The calls in their order, those that run at the same time as one group."""
    for key, members in groupby(enumerate(calls), lambda item: -1 if item[1].name in TOGETHER else item[0]):
        del key
        yield tuple(call for _, call in members)


class _Group:
    def __init__(self, count: int) -> None:
        self._arrived = [False] * count
        self._waiting = [False] * count
        self._ended = [False] * count
        self._changed = asyncio.Condition()

    async def arrive(self, place: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: all(self._arrived[:place]))
            self._arrived[place] = True
            self._changed.notify_all()

    async def wait(self, place: int) -> None:
        async with self._changed:
            self._waiting[place] = True
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._is_turn_of(place))

    async def end(self, place: int) -> None:
        async with self._changed:
            self._arrived[place] = self._ended[place] = True
            self._changed.notify_all()

    def _is_turn_of(self, place: int) -> bool:
        have_worked = all(waits or ended for waits, ended in zip(self._waiting, self._ended, strict=True))
        return have_worked and all(self._ended[:place])


_PLACE: ContextVar[tuple[_Group, int] | None] = ContextVar("place", default=None)


async def in_order() -> None:
    """Wait until those before this one in its group have come to this point or ended; at once where it is in no group."""
    place = _PLACE.get()
    if place is not None:
        await place[0].arrive(place[1])


async def my_turn() -> None:
    """Wait until all members of the group have come to this point or ended, and those before this one have ended.

    At once where the caller is in no group, and when it was its turn before.
    """
    place = _PLACE.get()
    if place is not None:
        await place[0].wait(place[1])


@contextmanager
def apart() -> Generator[None]:
    """For work whose own calls belong to no group of the caller's."""
    token = _PLACE.set(None)
    try:
        yield
    finally:
        _PLACE.reset(token)


async def together(members: Sequence[Callable[[], Awaitable[ResultT]]]) -> list[ResultT]:
    """Run them as a group; what they return, in order. When one raises the others are cancelled, and it is raised."""
    if len(members) == 1:
        return [await members[0]()]
    group = _Group(len(members))

    async def run(place: int) -> ResultT:
        _PLACE.set((group, place))
        try:
            return await members[place]()
        finally:
            await group.end(place)

    tasks = [asyncio.create_task(run(place)) for place in range(len(members))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (failure := task.exception()) is not None:
            raise failure
    return [task.result() for task in tasks]
