"""A resumed conversation is on the screen before its session is open."""

from __future__ import annotations

import asyncio

from kcode.errors import SandboxUnavailable
from kcode.messages import Message, Text
from kcode.model import Usage
from kcode.transcript import Record, Said, Turn
from kcode.tui.port import Launch
from tests.fakes.tui_screen import enter, screen_text, until
from tests.fakes.tui_session import ScriptedSessions
from tests.tui.conftest import Start

PAST: list[Record] = [Turn(1, "mend the cart", ""), Said(Message("assistant", (Text("The cart is mended."),)), Usage())]


async def test_it_is_shown_at_once_and_once(start: Start) -> None:
    sessions = ScriptedSessions(lambda text: [], history=PAST, may_open=asyncio.Event())
    app = start(sessions, launch=Launch("/repo", resume_id="a"))
    async with app.run_test(size=(80, 24)):
        shown = await until(app, "The cart is mended.")
        assert "◆" not in shown
        assert not sessions.opened
        assert sessions.may_open is not None
        sessions.may_open.set()
        shown = await until(app, "◆ kcode in /repo")
        assert shown.splitlines()[2] == " ❯ mend the cart"
        assert shown.count("The cart is mended.") == 1


async def test_it_goes_when_its_session_does_not_open(start: Start) -> None:
    sessions = ScriptedSessions(
        lambda text: [], history=PAST, problem=SandboxUnavailable("no namespaces here"), may_open=asyncio.Event()
    )
    app = start(sessions, launch=Launch("/repo", resume_id="a"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(app, "The cart is mended.")
        assert sessions.may_open is not None
        sessions.may_open.set()
        assert "The cart is mended." not in await until(app, "no namespaces here")
        sessions.problem = None
        await enter(pilot, "go")
        await until(app, "✓ done")
        assert "The cart is mended." not in screen_text(app)
