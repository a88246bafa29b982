"""`/context` and `/compact` on the screen."""

from __future__ import annotations

import asyncio

from kcode.events import ContextCompacted, TurnFinished
from kcode.model import Usage
from tests.fakes.tui_screen import enter, screen_text, until
from tests.fakes.tui_session import ScriptedSessions, Step
from tests.tui.conftest import Start


def compacts(text: str) -> list[Step]:
    ended = TurnFinished(1, "finished", "compacted", "", Usage(9000, 8000, 150), 0, 4.0)
    return [ContextCompacted(8000, 1200, "model", False, "the note"), ended]


async def test_context_shows_what_fills_it(start: Start) -> None:
    app = start(ScriptedSessions(compacts))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "/context")
        await until(app, "the context holds 8,000 of 32,768 tokens")
        shown = screen_text(app)
        assert "tool results" in shown
        assert "24,768" in shown
        assert "4,000 result of read calc.py" in shown


async def test_compact_is_said_to_the_session(start: Start) -> None:
    sessions = ScriptedSessions(compacts)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "/compact the names")
        await until(app, "context compacted: 8,000 tokens became 1,200")
        assert sessions.opened[0].said == ["/compact the names"]


async def test_a_command_typed_before_the_conversation_is_open_waits_for_it(start: Start) -> None:
    sessions = ScriptedSessions(lambda text: [], may_open=asyncio.Event())
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "/context")
        await until(app, lambda: bool(sessions.asked))
        assert "no conversation is open" not in screen_text(app)
        assert sessions.may_open is not None
        sessions.may_open.set()
        await until(app, "the context holds 8,000 of 32,768 tokens")
