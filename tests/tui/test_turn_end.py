"""What a turn came to is told once: by the model, by a call, or at the end."""

from __future__ import annotations

import pytest

from kcode.events import StepStarted, TextPiece, TurnFinished
from kcode.model import Usage
from kcode.tui.turn_end import told_at_end
from tests.fakes.tui_screen import enter, screen_text, until
from tests.fakes.tui_session import ScriptedSessions, Step
from tests.tui.conftest import Start


@pytest.mark.parametrize(
    ("result", "reason", "heard", "told"),
    [
        ("Fixed add in a.py.", "the tests pass", "", "Fixed add in a.py."),
        ("Fixed add in a.py.", "the tests pass", "Done. Fixed add in a.py.", ""),
        ("Not fixed: no way. Still failing: 1 failed.", "no way", "", ""),
        ("", "the model answered", "", ""),
        ("Fixed A.__init__: `__x__` was wrong.", "", "", "Fixed A.\\_\\_init\\_\\_: `__x__` was wrong."),
    ],
)
def test_it_is_told_unless_it_was_heard(result: str, reason: str, heard: str, told: str) -> None:
    assert told_at_end(result, reason, heard) == told


@pytest.mark.parametrize(("said", "times"), [("", 1), ("Fixed A.__init__ in a.py.", 1)])
async def test_the_screen_shows_it_once(start: Start, said: str, times: int) -> None:
    def script(text: str) -> list[Step]:
        spoken: list[Step] = [TextPiece(said)] if said else []
        end = TurnFinished(1, "finished", "the tests pass", "Fixed A.__init__ in a.py.", Usage(), 1, 1.0)
        return [StepStarted(1), *spoken, end]

    app = start(ScriptedSessions(script))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "done")
        assert screen_text(app).count("Fixed A.__init__ in a.py." if not said else "in a.py.") == times
