"""The open session and what waits to be said to it. It knows no screen: it calls back with events and changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from kcode.errors import KcodeError
from kcode.events import Event, Notice, TurnFinished
from kcode.tui.port import Ask, ChatSession, Sessions

LOG = logging.getLogger(__name__)


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

    async def open(self, resume_id: str | None = None, model: str | None = None) -> bool:
        """Replace the session. Raises KcodeError and then has no session; what is queued waits for the next try."""
        await self.close()
        self.is_opening = True
        self._on_change()
        try:
            self.session = await self._sessions.open(resume_id, model, self._ask)
        finally:
            self.is_opening = False
            self._on_change()
        return True

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
            self.session.interrupt()

    async def close(self) -> None:
        """End the running turn and the session. Idempotent."""
        session, turns = self.session, self._turns
        self.session, self._turns = None, None
        if session is not None and turns is not None and not turns.done():
            session.interrupt()
            await asyncio.wait([turns], timeout=3)
            turns.cancel()
            await asyncio.gather(turns, return_exceptions=True)
        if session is not None:
            await session.close()

    async def _run(self, session: ChatSession) -> None:
        while self.queue and self.session is session:
            text = self.queue.pop(0)
            self.is_working = True
            self._on_change()
            self._on_said(text)
            finished = False
            try:
                async for event in session.submit(text):
                    finished = finished or isinstance(event, TurnFinished)
                    self._on_event(event)
            except KcodeError as error:
                self._on_event(Notice("error", str(error)))
            except Exception as error:
                LOG.exception("the turn failed")
                self._on_event(Notice("error", f"kcode itself failed: {type(error).__name__}: {error}"))
            finally:
                self.is_working = False
                self._on_change()
