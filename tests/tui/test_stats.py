"""`/stats` tells what a conversation cost, as numbers and as small plots."""

from __future__ import annotations

from kcode.events import PlainDisplay
from kcode.messages import Message, Text, ToolResult, user
from kcode.model import Usage
from kcode.transcript import Answered, Record, Said, Turn
from kcode.tui.stats import Columns, stats_blocks
from kcode.tui.theme import DARK, look_of
from tests.fakes.tui_screen import enter, until
from tests.fakes.tui_session import ScriptedSessions
from tests.tui.conftest import Start
from tests.tui.test_chat import whole_turn

LOOK = look_of(DARK.to_color_system().generate())


def answered(name: str, seconds: float, *, is_error: bool = False) -> Answered:
    return Answered(ToolResult("c", name, "", is_error), PlainDisplay(""), seconds)


def said(prompt: int, cached: int, written: int) -> Said:
    return Said(Message("assistant", (Text("x"),)), Usage(prompt, cached, written))


RECORDS: list[Record] = [
    Turn(1, "go", ""),
    Said(user("go"), None),
    said(1000, 0, 40),
    answered("bash", 2.0),
    said(2000, 1000, 20),
    answered("read", 0.5),
    answered("bash", 3.0, is_error=True),
    said(4000, 4000, 80),
]


def drawn(columns: Columns, width: int = 80) -> list[str]:
    return [strip.text.rstrip() for strip in columns.draw(width, LOOK)]


def test_columns_are_as_high_as_their_values_and_what_is_new_is_always_seen() -> None:
    assert drawn(Columns("w", [(0, 8), (4, 8), (8, 8), (7, 8), (0, 1), (0, 0)], 2)) == [
        "   w",
        "   ██░█   8",
        "   █░░░▂  0",
    ]


def test_more_steps_than_columns_are_drawn_by_the_largest_of_neighbours() -> None:
    values = [(0, 1)] * 500
    values[250] = (0, 8)
    rows = drawn(Columns("w", values, 1), 46)
    assert len(rows[1]) <= 46
    assert rows[1].strip().count("█") == 1
    assert rows[1].split()[0] == "▁" * 15 + "█" + "▁" * 14


def test_the_sums_are_those_of_the_steps_and_calls() -> None:
    told, _, _, calls = stats_blocks(RECORDS)
    assert getattr(told, "text", "") == ("3 steps in 1 turn: 7,000 tokens read, 5,000 of them cached (71%), 140 written")
    assert getattr(calls, "rows", []) == [
        ("bash", "█████████████▍░░░░░░ 2 calls, 5.0 s, 1 failed"),
        ("read", "██████▋░░░░░░░░░░░░░ 1 call, 0.5 s"),
    ]
    assert len(stats_blocks([])) == 1


async def test_the_command_shows_them(start: Start) -> None:
    sessions = ScriptedSessions(whole_turn, history=RECORDS)
    app = start(sessions)
    async with app.run_test(size=(100, 40)) as pilot:
        await until(app, lambda: bool(sessions.opened))
        sessions.opened[0].records.extend(RECORDS)
        await enter(pilot, "/stats")
        shown = await until(app, "tokens written by each step")
        assert "5,000 of them cached (71%)" in shown
        assert "2 calls, 5.0 s, 1 failed" in shown
