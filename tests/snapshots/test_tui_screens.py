"""How the screens look. After a wanted change: pytest tests/snapshots --snapshot-update, and look at the new pictures."""

from __future__ import annotations

from typing import Protocol

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import OptionList

from kcode.approval import Question
from kcode.events import CallOutput, CallStarted, DiffDisplay, PlainDisplay, StepStarted, TestsDisplay, TextPiece
from kcode.messages import Message, Text, Thinking, ToolCall, ToolResult
from kcode.model import Usage
from kcode.transcript import Answered, Record, Said, Turn, TurnEnd
from kcode.tui.app import KcodeApp
from kcode.tui.port import Launch
from kcode.tui.widgets.activity import Activity
from tests.fakes.tui_screen import enter, until
from tests.fakes.tui_session import Hold, ScriptedSessions, ScriptedStore, Step


class Compare(Protocol):
    def __call__(self, app: App[None], *, terminal_size: tuple[int, int], run_before: object) -> bool: ...


OLD = """import re


def slugify(title: str) -> str:
    words = re.findall(r"[a-z]+", title.lower())
    return "-".join(words)
"""
NEW = OLD.replace("[a-z]+", "[a-z0-9]+")
ANSWER = """`slugify` dropped **digits**. I widened the character class:

```python
words = re.findall(r"[a-z0-9]+", title.lower())
```

1. All tests pass now.
2. 日本語 and 🎉 still give an empty slug.
"""
READ, EDIT, TESTS = (ToolCall(name, name, '{"path": "src/slug.py"}') for name in ("read", "str_replace", "run_tests"))
FINISHED: list[Record] = [
    Turn(1, "tests/test_slug.py fails; fix the bug", ""),
    Said(Message("assistant", (Thinking("The test wants digits kept."), READ)), Usage()),
    Answered(ToolResult("read", "read", ""), PlainDisplay(OLD), 0.04),
    Said(Message("assistant", (EDIT,)), Usage()),
    Answered(ToolResult("str_replace", "str_replace", ""), DiffDisplay("src/slug.py", OLD, NEW), 0.12),
    Said(Message("assistant", (TESTS,)), Usage()),
    Answered(ToolResult("run_tests", "run_tests", ""), TestsDisplay("pytest -q", 12, 1, "E  assert 'a' == 'b'"), 2.1),
    Said(Message("assistant", (Text(ANSWER),)), Usage()),
    TurnEnd(1, "finished", "", "", Usage(8200, 7900, 240)),
]


def working(text: str) -> list[Step]:
    call = ToolCall("c1", "bash", "{}")
    output = CallOutput("c1", "collected 13 items\r\n\x1b[32mtests/test_slug.py ....\x1b[0m")
    return [StepStarted(1), TextPiece("I run the *tests* first."), CallStarted(call, "bash pytest -q"), output, Hold()]


def asking(text: str) -> list[Step]:
    arguments = '{"path": "src/slug.py", "old": "r\\"[a-z]+\\"", "new": "r\\"[a-z0-9]+\\""}'
    return [Question(ToolCall("c1", "str_replace", arguments), "write", "str_replace src/slug.py", "it changes files")]


@pytest.mark.parametrize("size", [(60, 20), (120, 40)], ids=["60x20", "120x40"])
def test_empty(snap_compare: Compare, size: tuple[int, int]) -> None:
    app = KcodeApp(Launch("/repo"), ScriptedSessions(working))

    async def prepare(pilot: Pilot[None]) -> None:
        await until(app, "◆ kcode in /repo")

    assert snap_compare(app, terminal_size=size, run_before=prepare)


def test_working(snap_compare: Compare) -> None:
    app = KcodeApp(Launch("/repo"), ScriptedSessions(working))

    async def prepare(pilot: Pilot[None]) -> None:
        await enter(pilot, "fix the bug")
        await until(app, "test_slug.py ....")
        await enter(pilot, "then write a changelog entry")
        await until(app, "⋯ next")
        # Its clock and spinner differ from run to run.
        app.screen.query_one(Activity).styles.visibility = "hidden"

    assert snap_compare(app, terminal_size=(100, 24), run_before=prepare)


@pytest.mark.parametrize("theme", ["kcode-dark", "kcode-light"])
def test_finished_with_a_diff(snap_compare: Compare, theme: str) -> None:
    app = KcodeApp(Launch("/repo", resume_id="a"), ScriptedSessions(working, history=FINISHED), theme=theme)

    async def prepare(pilot: Pilot[None]) -> None:
        await until(app, "8,200 tokens read")
        await until(app, "◆ kcode in /repo")

    assert snap_compare(app, terminal_size=(110, 44), run_before=prepare)


def test_approval(snap_compare: Compare) -> None:
    app = KcodeApp(Launch("/repo"), ScriptedSessions(asking))

    async def prepare(pilot: Pilot[None]) -> None:
        await enter(pilot, "fix the bug")
        await until(app, "Esc denies")
        app.screen_stack[-2].query_one(Activity).styles.visibility = "hidden"

    assert snap_compare(app, terminal_size=(80, 24), run_before=prepare)


def test_first_run(snap_compare: Compare) -> None:
    app = KcodeApp(Launch("/repo", needs_model=True), ScriptedSessions(working), ScriptedStore())

    async def prepare(pilot: Pilot[None]) -> None:
        await until(app, "qwen3-30b-a3b")
        options = app.screen.query_one(OptionList)
        await until(app, lambda: options.highlighted == 0 and options.has_focus)
        await pilot.pause(0.3)

    assert snap_compare(app, terminal_size=(80, 24), run_before=prepare)


def test_commands(snap_compare: Compare) -> None:
    app = KcodeApp(Launch("/repo"), ScriptedSessions(working))

    async def prepare(pilot: Pilot[None]) -> None:
        await until(app, "◆ kcode in /repo")
        await pilot.press("slash")
        await until(app, "/resume")

    assert snap_compare(app, terminal_size=(80, 24), run_before=prepare)
