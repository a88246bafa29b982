"""Keeps the context meter right: what a driver says and runs itself comes with no count of the model's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kcode.tui.conversation import Conversation


class ContextCount:
    """Counts the conversation's tokens after each change, one request at a time; `on_counted` hears of each result."""

    def __init__(self, conversation: Conversation, on_counted: Callable[[], None]) -> None:
        self._conversation = conversation
        self._on_counted = on_counted
        self._task: asyncio.Task[None] | None = None
        self._is_stale = False

    def soon(self) -> None:
        """Something changed. What changes during a count asks for one more after it."""
        if self._conversation.is_warming:
            return  # it counts when it is ready
        self._is_stale = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while self._is_stale and (session := self._conversation.session) is not None:
            self._is_stale = False
            await session.count_context()
            if session is self._conversation.session:
                self._on_counted()
