"""Writing a message: files by a few letters, earlier messages, large pastes, an editor; and what stands beside it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from textual import events
from textual.pilot import Pilot

from kcode.events import OWN_COMMAND, CallFinished, CallStarted, PlainDisplay, StepStarted, TextPiece, TurnFinished
from kcode.messages import ToolCall, ToolResult
from kcode.model import Usage
from kcode.tui.app import KcodeApp
from kcode.tui.file_index import FileIndex
from kcode.tui.widgets.prompt import Prompt
from kcode_bench.dictated import MODEL, dictated_model
from kcode_bench.terminal import Terminal
from tests.fakes.tui_screen import enter, screen_text, until
from tests.fakes.tui_session import ScriptedSessions, Step
from tests.tui.conftest import Start

FILES = ("src/slug.py", "tests/test_slug.py", "docs/sludge.md", "README.md")
LIST = "[x] read the test\n[>] mend the slug\n[ ] run all tests"


def answering(text: str) -> list[Step]:
    return [StepStarted(1), TextPiece("**All** green.")]


def planning(text: str) -> list[Step]:
    call = ToolCall("t1", "todo", "{}")
    return [StepStarted(1), CallFinished(call, ToolResult("t1", "todo", LIST), PlainDisplay(LIST), 0.0)]


async def ready(app: KcodeApp) -> Prompt:
    await until(app, "◆ kcode in /repo")
    prompt = app.screen.query_one(Prompt)
    await until(app, lambda: prompt.has_focus)
    return prompt


async def paste(pilot: Pilot[None], prompt: Prompt, text: str) -> None:
    prompt.post_message(events.Paste(text))
    await pilot.pause()


async def test_a_file_is_named_by_a_few_letters(start: Start) -> None:
    sessions = ScriptedSessions(answering, files=FILES)
    app = start(sessions)
    async with app.run_test(size=(80, 24)) as pilot:
        prompt = await ready(app)
        prompt.insert("mend @slg")
        await until(app, "❯ src/slug.py")
        await pilot.press("down")
        await until(app, "❯ docs/sludge.md")
        await pilot.press("up", "tab")
        assert prompt.text == "mend src/slug.py "
        assert "sludge" not in screen_text(app)
        prompt.insert("and @")
        await until(app, "tests/test_slug.py")
        await pilot.press("escape")
        await until(app, lambda: "tests/test_slug.py" not in screen_text(app))
        assert prompt.text == "mend src/slug.py and @"
        await pilot.press("enter")
        await until(app, lambda: sessions.opened[0].said == ["mend src/slug.py and @"])


def test_names_come_before_folders_and_scattered_letters_last() -> None:
    index = FileIndex(
        ["kcode/tui/app.py", "app/models.py", "docs/map.md", "kcode/tui/widgets/prompt.py", "İ/App.TXT", "a-p-p.py"]
    )
    assert index.find("app", 9) == ["İ/App.TXT", "kcode/tui/app.py", "app/models.py", "a-p-p.py"]
    assert index.find("tui/app", 9) == ["kcode/tui/app.py"]
    assert index.find("kwp", 9) == ["kcode/tui/widgets/prompt.py"]
    assert index.find("", 2) == ["kcode/tui/app.py", "app/models.py"]
    assert index.find("nothing.like(it", 9) == []


async def test_earlier_messages_are_searched(start: Start) -> None:
    sessions = ScriptedSessions(answering)
    app = start(sessions)
    async with app.run_test(size=(80, 24)) as pilot:
        prompt = await ready(app)
        said = ["fix the slug test", "write a changelog entry", "Fix the cart"]
        for text in said:
            await enter(pilot, text)
        await until(app, lambda: sessions.opened[0].said == said)
        await pilot.press("ctrl+r")
        await until(app, "❯ Fix the cart")
        await pilot.press("f", "i", "x", "down", "enter")
        await until(app, lambda: prompt.text == "fix the slug test")
        assert len(sessions.opened[0].said) == 3
        await pilot.press("enter")
        await until(app, lambda: sessions.opened[0].said[3:] == ["fix the slug test"])


async def test_a_large_paste_is_a_chip_and_sent_whole(start: Start) -> None:
    sessions = ScriptedSessions(answering)
    app = start(sessions)
    log = "\n".join(f"line {number}" for number in range(50))
    async with app.run_test(size=(80, 24)) as pilot:
        prompt = await ready(app)
        prompt.insert("why? ")
        await paste(pilot, prompt, log)
        await until(app, lambda: prompt.text == "why? [pasted 50 lines #1]")
        await pilot.press("enter")
        await until(app, lambda: sessions.opened[0].said == [f"why? {log}"])
        await pilot.press("up")
        assert prompt.text == f"why? {log}"


async def test_the_last_answer_is_copied(start: Start) -> None:
    app = start(ScriptedSessions(answering))
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(app)
        await enter(pilot, "/copy")
        await until(app, "there is no answer to copy")
        await enter(pilot, "go")
        await until(app, "✓ done")
        await enter(pilot, "/copy")
        await until(app, "copied the last answer")
        assert app.clipboard == "**All** green."


async def test_to_dos_are_shown_and_hidden(start: Start) -> None:
    app = start(ScriptedSessions(planning))
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(app)
        await pilot.press("ctrl+t")
        await until(app, "No to-dos yet")
        await enter(pilot, "go")
        await until(app, "To-dos: 1 of 3 done")
        shown = screen_text(app)
        assert "✓ read the test" in shown
        assert "▸ mend the slug" in shown
        assert "○ run all tests" in shown
        await pilot.press("ctrl+t")
        await until(app, lambda: "○ run all tests" not in screen_text(app))


async def test_an_editor_that_fails_leaves_the_message(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "/no/such/editor")
    app = start(ScriptedSessions(answering))
    async with app.run_test(size=(100, 24), notifications=True) as pilot:
        prompt = await ready(app)
        prompt.insert("as it was")
        await pilot.press("ctrl+g")
        await until(app, lambda: bool(app.screen.query("Toast")))
        assert prompt.text == "as it was"


@pytest.mark.slow
def test_a_message_is_written_in_an_editor(tmp_path: Path) -> None:
    editor = tmp_path / "editor.py"
    editor.write_text("import sys; open(sys.argv[1], 'a').write(' and from-the-editor')")
    work = tmp_path / "work"
    work.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KCODE_", "NO_COLOR"))}
    environment = kept | {"KCODE_HOME": str(tmp_path / "home"), "TERM": "xterm-256color", "VISUAL": f"{sys.executable} {editor}"}
    with dictated_model() as model:
        argv = [sys.executable, "-m", "kcode", "--base-url", model.url, "-m", MODEL]
        with Terminal(argv, work, environment, 100, 24) as terminal:
            terminal.wait("◆")
            terminal.type("typed")
            terminal.wait("typed")
            terminal.type("\x07")
            terminal.wait("from-the-editor")


async def test_a_command_of_ones_own_runs_while_the_model_loads(start: Start) -> None:
    call = ToolCall("probe.bash:1", "bash", '{"command": "ls -a"}')
    output = "".join(f"row {number}\n" for number in range(6))

    def listing(text: str) -> list[Step]:
        finished = CallFinished(call, ToolResult(call.id, "bash", output), PlainDisplay(output), 0.1)
        return [CallStarted(call, "$ ls -a"), finished, TurnFinished(1, "finished", OWN_COMMAND, "", Usage(), 0, 0.1)]

    sessions = ScriptedSessions(listing, loaded=asyncio.Event())
    app = start(sessions)
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(app)
        app.screen.query_one(Prompt).insert("! ls -a")
        await until(app, "$ ! ls -a")
        await pilot.press("enter")
        shown = await until(app, "row 0")
        assert "row 5" in shown
        assert "✓ done" not in shown
        assert "❯ What should be done?" in shown
        assert sessions.opened[0].said == ["$ ls -a"]
