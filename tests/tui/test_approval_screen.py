"""The question before a change: nothing but the named keys may allow it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kcode.approval import Question, Reply
from kcode.events import StepStarted, TextPiece
from kcode.messages import ToolCall
from kcode.tui.screens.approval import ApprovalScreen
from tests.fakes.tui_screen import enter, screen_text, until
from tests.fakes.tui_session import ScriptedSessions, Step
from tests.tui.conftest import Start


def question(name: str, **arguments: object) -> Question:
    return Question(ToolCall("c1", name, json.dumps(arguments)), "write", f"{name} something", "it changes files")


BASH = question("bash", command="git push --force\x1b]0;x\x07 && rm -rf \u202e/tmp", timeout_s=30)
EDIT = question("str_replace", path="a.py", old="x = 1\ny = 2", new="x = 1\ny = 3")


OLD = "def f():\n    first()\n    second()\n"
REWRITE = question("rewrite_function", path="a.py", code="def f():\n    first()\n    third()\n")


async def test_a_rewritten_function_is_shown_beside_the_old_one(start: Start) -> None:
    app = start(asking(replace(REWRITE, before=OLD)))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "Allow once")
        lines = screen_text(app).split("\n")
        assert any("second()" in line and "-" in line for line in lines)
        assert any("third()" in line and "+" in line for line in lines)
        assert not any("first()" in line and "+" in line for line in lines)
        assert "two columns" in screen_text(app)


@pytest.mark.parametrize(("asked", "is_named"), [(BASH, False), (EDIT, True), (REWRITE, False)])
async def test_columns_are_named_where_there_are_two_sides(start: Start, asked: Question, is_named: bool) -> None:
    app = start(asking(asked))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "Allow once")
        assert ("two columns" in screen_text(app)) is is_named


def asking(asked: Question) -> ScriptedSessions:
    def script(text: str) -> list[Step]:
        return [StepStarted(1), asked, TextPiece("went on")]

    return ScriptedSessions(script)


@pytest.mark.parametrize(
    ("keys", "reply"),
    [
        (["1"], Reply("allow")),
        (["enter"], Reply("allow")),
        (["2"], Reply("allow-always")),
        (["down", "enter"], Reply("allow-always")),
        (["escape"], Reply("deny")),
        (["ctrl+c"], Reply("deny")),
        (["3", "u", "s", "e", "space", "y", "enter"], Reply("deny", "use y")),
        (["3", "1", "2", "enter"], Reply("deny", "12")),
        (["3", "n", "o", "escape"], Reply("deny")),
        (["up", "enter", "enter"], Reply("deny")),
        (["y", "a", "space", "x", "escape"], Reply("deny")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_keys_decide(start: Start, keys: list[str], reply: Reply) -> None:
    sessions = asking(EDIT)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "Allow once")
        await pilot.press(*keys)
        await until(app, "went on")
        assert sessions.opened[0].replies == [reply]


async def test_an_edit_is_shown_as_a_diff(start: Start) -> None:
    app = start(asking(EDIT))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        shown = await until(app, "Allow once")
        assert "? Allow str_replace something" in shown
        assert "it changes files" in shown
        assert "2 - y = 2" in shown
        assert "2 + y = 3" in shown
        await pilot.press("escape")


@pytest.mark.parametrize(("width", "first"), [(100, False), (140, True)])
async def test_v_turns_one_or_two_columns(start: Start, width: int, first: bool) -> None:
    app = start(asking(EDIT))
    async with app.run_test(size=(width, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "Allow once")
        for two in (first, not first, first):
            lines = [line for line in screen_text(app).splitlines() if "y = 2" in line]
            assert ["y = 3" in line for line in lines] == [two]
            await pilot.press("v")
            await pilot.pause()


async def test_a_command_is_shown_whole_and_undisguised(start: Start) -> None:
    app = start(asking(BASH))
    async with app.run_test(size=(60, 20)) as pilot:
        await enter(pilot, "go")
        shown = await until(app, "Allow once")
        assert "$ git push --force && rm -rf <U+202E>/tmp" in shown
        assert "timeout_s: 30" in shown
        await pilot.press("escape")


async def test_a_long_edit_is_scrolled_and_the_choices_stay_in_view(start: Start) -> None:
    app = start(asking(question("create", path="a.py", content="".join(f"value_{number} = 0\n" for number in range(50)))))
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot, "go")
        shown = await until(app, "Deny, and say why")
        assert "value_0" in shown
        await pilot.press(*["pagedown"] * 8)
        assert "value_49" in await until(app, "value_49")
        assert "Allow once" in screen_text(app)
        await pilot.press("escape")


async def test_calls_with_broken_or_odd_arguments_are_shown_as_they_are(start: Start) -> None:
    odd = Question(ToolCall("c1", "bash", '{"command": ["ls", '), "execute", "bash", "it runs a command")
    app = start(asking(odd))
    async with app.run_test(size=(80, 24)) as pilot:
        await enter(pilot, "go")
        assert '{"command": ["ls",' in await until(app, "Allow once")
        await pilot.press("escape")


async def test_the_question_leaves_with_its_turn(start: Start) -> None:
    sessions = asking(EDIT)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "Allow once")
        sessions.opened[0].interrupt()
        await until(app, lambda: not isinstance(app.screen, ApprovalScreen))
        assert sessions.opened[0].replies == []
