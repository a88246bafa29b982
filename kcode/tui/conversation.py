"""The open session and what waits to be said to it. It knows no screen: it calls back with events and changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from kcode.errors import KcodeError
from kcode.tui.commands import own_command
from kcode.tui.port import ChatSession, Sessions

if TYPE_CHECKING:
    from kcode.events import Event, NoticeLevel
    from kcode.tui.port import Ask

LOG = logging.getLogger(__name__)
PATIENCE_S = 3
"""How long a turn may take to end in order when its session is closed."""
SOON_S = 0.3
"""A model that is ready within this is not said to be loading."""


class Conversation:
    """One session at a time; messages sent while it works, or before it is open, wait in `queue` in their order.

    `on_event` gets every event of every turn, `on_said` a message when its turn begins, `on_change` is called whenever the
    session, `is_working` or the queue changed. A turn that fails leaves the session open for the next.
    """

    def __init__(
        self,
        sessions: Sessions,
        ask: Ask,
        *,
        on_event: Callable[[Event], None],
        on_said: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self.session: ChatSession | None = None
        self.queue: list[str] = []
        self.is_working = False
        self.is_opening = False
        self._sessions = sessions
        self._ask = ask
        self._on_event = on_event
        self._on_said = on_said
        self._on_change = on_change
        self._turns: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    @property
    def is_warming(self) -> bool:
        """Whether the model is being made ready."""
        return self._warming is not None and not self._warming.done()

    async def open(self, resume_id: str | None = None, model: str | None = None) -> None:
        """Replace the session and begin to make its model ready.

        Raises KcodeError and then has no session; what is queued waits for the next try.
        """
        await self.close()
        self.is_opening = True
        self._on_change()
        try:
            self.session = await self._sessions.open(resume_id, model, self._ask)
        finally:
            self.is_opening = False
            self._on_change()
        self._warming = asyncio.create_task(self._warm(self.session))

    def send(self, text: str) -> None:
        self.queue.append(text)
        self._on_change()
        self.proceed()

    def proceed(self) -> None:
        """Begin with the queue unless a turn is running or there is no session."""
        if self.queue and self.session is not None and (self._turns is None or self._turns.done()):
            self._turns = asyncio.create_task(self._run(self.session))

    def take_back(self) -> str:
        """Empty the queue; its text for the prompt."""
        text = "\n\n".join(self.queue)
        self.queue.clear()
        self._on_change()
        return text

    def interrupt(self) -> None:
        if self.session is not None and self.is_working:
            self._stop.set()
            self.session.interrupt()

    async def files(self) -> list[str]:
        """Paths of the workspace, the last changed first. Raises SandboxError."""
        return [stat.path for stat in await self.session.list_files()] if self.session is not None else []

    async def close(self) -> None:
        """End the running turn and the session. Idempotent."""
        session, turns, warming = self.session, self._turns, self._warming
        self.session, self._turns, self._warming = None, None, None
        if session is None:
            return
        self._stop.set()
        session.interrupt()
        running = [task for task in (turns, warming) if task is not None and not task.done()]
        if turns in running:
            await asyncio.wait([turns], timeout=PATIENCE_S)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await session.close()

    async def _warm(self, session: ChatSession) -> None:
        try:
            await session.start()
            await session.count_context()
        except KcodeError as error:
            self._notice("error", str(error))
        finally:
            self._warming = None
            self._on_change()

    async def _warm_again(self, session: ChatSession) -> None:
        try:
            with contextlib.suppress(KcodeError):
                await session.start()  # what is wrong the turn will say
        finally:
            self._warming = None
            self._on_change()

    async def _run(self, session: ChatSession) -> None:
        while self.queue and self.session is session:
            text = self.queue.pop(0)
            self.is_working = True
            self._stop.clear()
            self._on_change()
            self._on_said(text)
            try:
                await self._turn(session, text)
            except KcodeError as error:
                self._notice("error", str(error))
            except Exception as error:
                LOG.exception("the turn failed")
                self._notice("error", f"kcode itself failed: {type(error).__name__}: {error}")
            finally:
                self.is_working = False
                self._on_change()

    async def _turn(self, session: ChatSession, text: str) -> None:
        command = own_command(text)
        if not command and not await self._is_ready(session):
            self._notice("warning", "interrupted before it began")
            return
        async for event in session.submit(command or text, as_command=bool(command)):
            self._on_event(event)

    async def _is_ready(self, session: ChatSession) -> bool:
        """Whether the model was made ready before somebody interrupted."""
        warming = self._warming
        if warming is None:
            # The engine may have ended since: it stops when nobody uses it, and it can be killed.
            warming = self._warming = asyncio.create_task(self._warm_again(session))
            await asyncio.wait([warming], timeout=SOON_S)
            if not warming.done():
                self._on_change()
        if not warming.done():
            # Starting a model takes long and a session cannot be interrupted while it does.
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait([warming, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            return not self._stop.is_set()
        return True

    def _notice(self, level: NoticeLevel, text: str) -> None:
        from kcode.events import Notice

        self._on_event(Notice(level, text))
