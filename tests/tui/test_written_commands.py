"""Commands that somebody wrote, on the screen."""

from __future__ import annotations

from kcode.custom_commands import CustomCommand
from kcode.tui.widgets.prompt import Prompt
from tests.fakes.tui_screen import enter, until
from tests.fakes.tui_session import ScriptedSessions
from tests.tui.conftest import Start
from tests.tui.test_chat import whole_turn


async def test_written_commands_are_offered_and_sent_with_their_arguments(start: Start) -> None:
    sessions = ScriptedSessions(whole_turn, commands=(CustomCommand("review", "[file] look at it", "", ""),))
    app = start(sessions)
    async with app.run_test(size=(100, 40)) as pilot:
        await until(app, lambda: bool(sessions.opened))
        await pilot.press("slash", "r", "e", "v")
        await until(app, "[file] look at it")
        await pilot.press("enter")
        assert app.screen.query_one(Prompt).text == "/review "
        await pilot.press(*"calc", "enter")
        await until(app, lambda: sessions.opened[0].said == ["/review calc"])
        await until(app, "done · 2 steps")
        await enter(pilot, "/review")
        await until(app, lambda: sessions.opened[0].said[1:] == ["/review"])
