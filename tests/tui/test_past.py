"""Going back, copying and exporting from the screen."""

from __future__ import annotations

from tests.fakes.tui_screen import enter, until
from tests.fakes.tui_session import Past, ScriptedSessions
from tests.tui.conftest import Start
from tests.tui.test_chat import whole_turn


async def test_the_past_is_reached_by_commands(start: Start) -> None:
    sessions = ScriptedSessions(whole_turn)
    app = start(sessions)
    async with app.run_test(size=(100, 40)) as pilot:
        await until(app, lambda: bool(sessions.opened))
        await enter(pilot, "first words")
        await until(app, "done · 2 steps")
        await enter(pilot, "/rewind")
        await until(app, "Go back to before")
        await pilot.press("enter")
        await until(app, "took back 'first words'")
        await enter(pilot, "/redo")
        await until(app, "there is nothing to bring back")
        await enter(pilot, "/export")
        await until(app, "say where to")
        await enter(pilot, "/export notes.md")
        await until(app, "written to notes.md")
        await enter(pilot, "/fork")
        await until(app, "this is a copy of 20260101-demo")


async def test_an_earlier_conversation_is_found_by_typing(start: Start) -> None:
    found = [Past("20260101-a", "fix the login", "2026-01-01"), Past("20260102-b", "rename the parser", "2026-01-02")]
    sessions = ScriptedSessions(whole_turn, listed=found)
    app = start(sessions)
    async with app.run_test(size=(100, 40)) as pilot:
        await until(app, lambda: bool(sessions.opened))
        await enter(pilot, "/resume")
        await until(app, "Go on with a conversation")
        await pilot.press(*"PARSz")
        await until(app, "0 with 'PARSz'")
        await pilot.press("backspace")
        await until(app, "1 with 'PARS'")
        await pilot.press("enter")
        await until(app, lambda: sessions.asked[-1][0] == "20260102-b")
