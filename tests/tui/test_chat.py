"""The chat screen as a user drives it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from textual import events

from kcode.errors import ConfigError, EngineDied, SandboxUnavailable
from kcode.events import (
    CallFinished,
    CallOutput,
    CallPiece,
    CallStarted,
    Notice,
    PlainDisplay,
    Prefill,
    StepFinished,
    StepStarted,
    TextPiece,
    ThinkingPiece,
    TurnFinished,
)
from kcode.messages import Message, Text, Thinking, ToolCall, ToolResult, user
from kcode.model import Usage
from kcode.transcript import Answered, Said, Turn, TurnEnd
from kcode.tui.app import KcodeApp
from kcode.tui.port import Launch
from kcode.tui.widgets.prompt import Prompt
from kcode.tui.widgets.status import Status
from kcode.tui.widgets.transcript import Transcript
from tests.fakes.tui_screen import enter, screen_text, until
from tests.fakes.tui_session import COUNTED_AFTER_UNDO, Fail, Hold, Past, ScriptedSessions, Step
from tests.tui.conftest import Start

CALL = ToolCall("c1", "bash", '{"command": "make"}')
FINISHED = TurnFinished(1, "finished", "", "All green.", Usage(9000, 8000, 150), 2, 4.0)


def whole_turn(text: str) -> list[Step]:
    return [
        StepStarted(1),
        Prefill(9000, 9000, 8000, 500.0),
        ThinkingPiece("I should run it."),
        TextPiece("I run **make** now."),
        CallPiece(0, "bash", '{"command": "ma'),
        CallPiece(0, "", 'ke"}'),
        StepFinished(1, user(""), "tool_calls", Usage(9000, 8000, 50), 5.0, 9.5),
        CallStarted(CALL, "bash make"),
        CallOutput("c1", "compiling\r\n"),
        CallFinished(CALL, ToolResult("c1", "bash", "ok"), PlainDisplay("compiling\nok\n"), 1.5),
        Notice("warning", "the disk is nearly full"),
        StepStarted(2),
        TextPiece("All green."),
        StepFinished(2, user(""), "stop", Usage(9100, 9000, 100), 5.0, 10.25),
        FINISHED,
    ]


def holding(text: str) -> list[Step]:
    return [StepStarted(1), TextPiece("Working on it."), Hold()]


async def test_a_whole_turn(start: Start) -> None:
    sessions = ScriptedSessions(whole_turn)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "run make")
        await until(app, "done · 2 steps")
        assert screen_text(app).splitlines()[2:20] == [
            " ❯ run make",
            "",
            " ✻ Thought  ▸ 4 words",
            "",
            "   I run make now.",
            "",
            " ✓ bash make  ▸ 2 lines · 1.5 s",
            "   │ compiling",
            "   │ ok",
            "",
            " ! the disk is nearly full",
            "",
            "   All green.",
            "",
            " ✓ done · 2 steps · 9,000 tokens read (8,000 cached) · 150 written · 4.0 s",
            "",
            "",
            "",
        ]
        assert "10.2 tok/s" in screen_text(app).splitlines()[-1]


async def test_status_line_tells_context_exactly(start: Start) -> None:
    sessions = ScriptedSessions(lambda text: [StepStarted(1), Prefill(100, 12345, 0, 50.0), Hold()])
    app = start(sessions)
    async with app.run_test(size=(140, 20)) as pilot:
        await enter(pilot, "go")
        await until(app, "12,345/32,768 tokens")
        last = screen_text(app).splitlines()[-1]
        assert "qwen2.5-coder-1.5b" in last
        assert "bubblewrap · workspace-write · network off" in last
        assert last.endswith("ask")
        await pilot.press("shift+tab")
        await until(app, lambda: screen_text(app).splitlines()[-1].endswith("auto"))
        assert sessions.opened[0].approval_mode == "auto"
        assert "100/12,345 tokens" in await until(app, "Reading")
        sessions.opened[0].interrupt()


async def test_escape_interrupts_and_the_session_goes_on(start: Start) -> None:
    sessions = ScriptedSessions(holding)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "first")
        await until(app, "Working on it.")
        await pilot.press("escape")
        await until(app, "interrupted: by the user")
        await enter(pilot, "second")
        await until(app, "❯ second")
        assert sessions.opened[0].said == ["first", "second"]
        await pilot.press("escape")
        await until(app, lambda: screen_text(app).count("interrupted: by the user") == 2)


async def test_what_is_typed_while_it_works_waits_its_turn(start: Start) -> None:
    sessions = ScriptedSessions(holding)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "first")
        await until(app, "Working on it.")
        await enter(pilot, "second")
        await until(app, "⋯ next: second")
        assert sessions.opened[0].said == ["first"]
        sessions.opened[0].release.set()
        await until(app, lambda: sessions.opened[0].said == ["first", "second"])
        await until(app, lambda: "⋯ next" not in screen_text(app))


async def test_up_takes_back_what_waits(start: Start) -> None:
    sessions = ScriptedSessions(holding)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "first")
        await until(app, "Working on it.")
        await enter(pilot, "second")
        await pilot.press("up")
        await until(app, lambda: app.screen.query_one(Prompt).text == "second")
        await pilot.press("escape")
        await until(app, "interrupted")
        assert sessions.opened[0].said == ["first"]


async def test_interrupting_gives_back_what_waits(start: Start) -> None:
    sessions = ScriptedSessions(holding)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "first")
        await until(app, "Working on it.")
        await enter(pilot, "second")
        await pilot.press("escape")
        await until(app, "interrupted: by the user")
        assert app.screen.query_one(Prompt).text == "second"
        assert sessions.opened[0].said == ["first"]


async def test_the_death_of_the_engine_is_told_and_the_next_message_goes_on(start: Start) -> None:
    answers: list[list[Step]] = [[StepStarted(1), TextPiece("I am"), Fail(EngineDied("the engine ended (signal 9)"))], [FINISHED]]
    sessions = ScriptedSessions(lambda text: answers.pop(0))
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "first")
        await until(app, "✗ the engine ended (signal 9)")
        await enter(pilot, "again")
        await until(app, "✓ done")


async def test_a_bug_of_ours_is_told_and_the_session_goes_on(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def broken(text: str) -> list[Step]:
        raise ZeroDivisionError("division by zero")

    app = start(ScriptedSessions(broken))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "first")
        await until(app, "✗ kcode itself failed: ZeroDivisionError")
        assert "division by zero" in caplog.text


async def test_a_session_that_cannot_open_says_why_and_is_tried_again(start: Start) -> None:
    sessions = ScriptedSessions(whole_turn, problem=SandboxUnavailable("no user namespaces; try --sandbox danger-full-access"))
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(app, "✗ no user namespaces")
        sessions.problem = None
        await enter(pilot, "run make")
        await until(app, "✓ done")


async def test_a_message_sent_before_the_session_is_open_is_not_lost(start: Start) -> None:
    sessions = ScriptedSessions(whole_turn, delay_s=0.3)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "run make")
        await until(app, "✓ done")
        assert sessions.opened[0].said == ["run make"]


async def test_a_model_that_loads_slowly_can_be_typed_to_and_interrupted(start: Start) -> None:
    loaded = asyncio.Event()
    sessions = ScriptedSessions(whole_turn, loaded=loaded)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(app, "Loading the model … you can type already")
        await enter(pilot, "run make")
        await until(app, lambda: "Loading the model  0:0" in screen_text(app))
        await pilot.press("escape")
        await until(app, "interrupted before it began")
        assert sessions.opened[0].said == []
        await enter(pilot, "again")
        loaded.set()
        await until(app, "✓ done")
        assert sessions.opened[0].said == ["again"]
        # The engine ended meanwhile.
        loaded.clear()
        await enter(pilot, "once more")
        await until(app, lambda: "Loading the model  0:0" in screen_text(app))
        loaded.set()
        await until(app, lambda: sessions.opened[0].said == ["again", "once more"])


async def test_first_message_is_sent_at_once(start: Start) -> None:
    sessions = ScriptedSessions(whole_turn)
    app = start(sessions, launch=Launch("/repo", first_message="fix the bug", resume_id="abc"))
    async with app.run_test(size=(100, 30)):
        await until(app, "✓ done")
        assert sessions.asked == [("abc", None)]
        assert sessions.opened[0].said == ["fix the bug"]


async def test_many_lines_are_typed_pasted_and_sent_as_they_are(start: Start) -> None:
    sessions = ScriptedSessions(whole_turn)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("a", "shift+enter", "b", "ctrl+j", "c")
        prompt = app.screen.query_one(Prompt)
        for pasted in ("\nx = 1\r\n\tindented\x1b[31m\n", "line\n" * 10, "line\n" * 10 + "end"):
            prompt.post_message(events.Paste(pasted))
            await pilot.pause()
        assert prompt.size.height == 12
        await pilot.press("enter")
        await until(app, lambda: bool(sessions.opened and sessions.opened[0].said))
        assert sessions.opened[0].said == ["a\nb\nc\nx = 1\n    indented\n" + "line\n" * 20 + "end"]


async def test_history_is_walked_and_kept_over_starts(start: Start, tmp_path: Path) -> None:
    sessions = ScriptedSessions(lambda text: [FINISHED])
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "first\nwith two lines")
        await enter(pilot, "second")
        await until(app, lambda: bool(sessions.opened) and len(sessions.opened[0].said) == 2)
    assert [json.loads(line) for line in (tmp_path / "state" / "history.jsonl").read_text().splitlines()] == [
        "first\nwith two lines",
        "second",
    ]
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        prompt = app.screen.query_one(Prompt)
        await pilot.press("d", "r", "a", "f", "t", "up")
        assert prompt.text == "second"
        await pilot.press("up", "home", "up", "up")
        assert prompt.text == "first\nwith two lines"
        await pilot.press("down", "down")
        assert prompt.text == "second"
        await pilot.press("down")
        assert prompt.text == "draft"


async def test_control_c_twice_leaves(start: Start) -> None:
    sessions = ScriptedSessions(holding)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "first")
        await until(app, "Working on it.")
        await pilot.press("ctrl+c")
        await until(app, "interrupted: by the user")
        await until(app, "Ctrl+C again leaves")
        assert app.is_running
        await pilot.press("ctrl+c")
        await until(app, lambda: not app.is_running or app._exit)
    assert sessions.opened[0].closed


async def test_control_d_leaves_only_when_nothing_is_typed(start: Start) -> None:
    app = start(ScriptedSessions(whole_turn))
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("x", "ctrl+d")
        assert not app._exit
        await pilot.press("backspace", "ctrl+d")
        await until(app, lambda: app._exit)


async def test_commands_are_offered_completed_and_run(start: Start) -> None:
    app = start(ScriptedSessions(whole_turn))
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.press("slash")
        await until(app, "/resume")
        await pilot.press("n", "tab")
        assert app.screen.query_one(Prompt).text == "/new"
        await pilot.press("escape")
        assert app.screen.query_one(Prompt).text == ""
        await pilot.press("slash", "h", "enter")
        await until(app, "Ctrl+D")
        assert app.screen.query_one(Prompt).text == ""
        await enter(pilot, "/hepl")
        await until(app, "/hepl is no command")


async def test_diff_is_shown_and_closed(start: Start) -> None:
    app = start(ScriptedSessions(whole_turn, patch="diff --git a/x b/x\n@@ -1 +1 @@\n-old\n+new\n"))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "/diff")
        await until(app, "+new")
        await pilot.press("escape")
        await until(app, lambda: "+new" not in screen_text(app))


async def test_undo_says_what_was_restored(start: Start) -> None:
    sessions = ScriptedSessions(whole_turn)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "✓ done")
        await enter(pilot, "/undo")
        await until(app, "↶ restored 1 file: src/slug.py")
        assert sessions.opened[0].undone == 1
        await until(app, f"{COUNTED_AFTER_UNDO}/")
        assert "❯ go" not in screen_text(app)


async def test_resume_shows_what_was_said(start: Start) -> None:
    said = [
        Turn(1, "fix the slug", ""),
        Said(user("the text with what the profile added"), None),
        Said(Message("assistant", (Thinking("Let me see."), Text("I look."), CALL)), Usage()),
        Answered(ToolResult("c1", "bash", "for the model", True), PlainDisplay("make: *** error"), 1.25),
        Said(Message("assistant", (Text("It *fails*."),)), Usage()),
        TurnEnd(1, "limit", "after 2 model calls", "It *fails*.", Usage(3000, 1000, 20)),
    ]
    sessions = ScriptedSessions(whole_turn, history=said, listed=[Past("abc", "fix the slug", "2 hours ago")])
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(app, lambda: bool(sessions.opened))
        await enter(pilot, "/resume")
        await until(app, "2 hours ago")
        await pilot.press("enter")
        await until(app, "It fails.")
        assert [line for line in screen_text(app).splitlines()[2:17] if line] == [
            " ❯ fix the slug",
            " ✻ Thought  ▸ 3 words",
            "   I look.",
            " ✗ bash make  ▸ 1 line · 1.2 s",
            "   │ make: *** error",
            "   It fails.",
            " ! stopped at a limit: after 2 model calls · 3,000 tokens read (1,000 cached) · 20 written",
        ]
        assert sessions.asked == [(None, None), ("abc", None)]
        assert sessions.opened[0].closed


async def test_new_empties_the_screen(start: Start) -> None:
    sessions = ScriptedSessions(whole_turn)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "✓ done")
        await enter(pilot, "/new")
        await until(app, lambda: "✓ done" not in screen_text(app))
        assert len(sessions.opened) == 2


async def test_commands_that_replace_the_session_wait_for_the_turn(start: Start) -> None:
    sessions = ScriptedSessions(holding)
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "first")
        await until(app, "Working on it.")
        await enter(pilot, "/new")
        await until(app, "interrupt it with Esc first")
        assert len(sessions.opened) == 1
        await pilot.press("escape")


async def test_results_unfold_by_key_and_click(start: Start) -> None:
    long = CallFinished(CALL, ToolResult("c1", "bash", ""), PlainDisplay("".join(f"row {number}\n" for number in range(8))), 1.5)
    app = start(ScriptedSessions(lambda text: [CallStarted(CALL, "bash make"), long, FINISHED]))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "✓ done")
        assert "row 0" not in screen_text(app)
        await pilot.press("ctrl+o")
        await until(app, "row 0")
        await pilot.press("ctrl+o")
        await until(app, lambda: "row 0" not in screen_text(app))
        line = next(y for y, row in enumerate(screen_text(app).splitlines()) if "bash make" in row)
        await pilot.click(Transcript, offset=(5, line))
        await until(app, "row 0")
        await pilot.press("up", "enter")
        await until(app, lambda: "row 0" not in screen_text(app))
        await pilot.press("x")
        assert app.screen.query_one(Prompt).text == "x"


async def test_resizing_draws_anew_and_keeps_the_end_in_view(start: Start) -> None:
    words = " ".join(f"word{number}" for number in range(400))
    app = start(ScriptedSessions(lambda text: [TextPiece(words), FINISHED]))
    async with app.run_test(size=(120, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "✓ done")
        for width, height in ((60, 20), (200, 60), (40, 12), (80, 24)):
            await pilot.resize_terminal(width, height)
            await until(app, "word399")
            assert max(len(line) for line in screen_text(app).splitlines()) <= width


async def test_scrolled_back_the_view_stays_while_more_comes(start: Start) -> None:
    first = "\n\n".join(f"paragraph {number}" for number in range(60))
    sessions = ScriptedSessions(lambda text: [TextPiece(first), Hold(), TextPiece("\n\nmore\n\n" * 30), FINISHED])
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "paragraph 59")
        await pilot.press("pageup", "pageup")
        await pilot.pause()
        before = [line[:99].rstrip() for line in screen_text(app).splitlines()[:20]]
        sessions.opened[0].release.set()
        await until(app, lambda: app.screen.query_one(Status).facts.elapsed_s > 0)
        await pilot.pause(0.2)
        assert [line[:99].rstrip() for line in screen_text(app).splitlines()[:20]] == before
        await pilot.press("pagedown", "pagedown", "pagedown", "pagedown", "pagedown")
        await until(app, "✓ done")


async def test_nothing_moves_when_it_waits(start: Start) -> None:
    app = start(ScriptedSessions(whole_turn))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "✓ done")
        await pilot.pause(0.3)
        running = [timer for widget in [app, app.screen, *app.screen.walk_children()] for timer in widget._timers]
        assert [timer for timer in running if timer._active.is_set() and timer._repeat is None] == []


async def test_selected_text_is_copied(start: Start) -> None:
    app = start(ScriptedSessions(lambda text: [TextPiece("copy these words"), FINISHED]))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "go")
        await until(app, "✓ done")
        line = next(y for y, row in enumerate(screen_text(app).splitlines()) if "copy these words" in row)
        await pilot.mouse_down(Transcript, offset=(3, line))
        await pilot.hover(Transcript, offset=(13, line))
        await pilot.mouse_up(Transcript, offset=(13, line))
        await pilot.pause()
        await pilot.press("ctrl+c")
        assert app.clipboard.startswith("copy these")
        assert app.is_running


def test_an_unknown_theme_is_named(start: Start) -> None:
    with pytest.raises(ConfigError, match=r"theme 'neon' is unknown; there are .*kcode-dark"):
        KcodeApp(Launch("/repo"), ScriptedSessions(whole_turn), theme="neon")


async def test_without_colour_everything_is_still_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = start(ScriptedSessions(whole_turn))
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "run make")
        shown = await until(app, "✓ done")
        assert "✓ bash make" in shown
        styles = [segment.style for strip in app.screen._compositor.render_strips(app.size) for segment in strip]
        assert {style.color.name for style in styles if style and style.color} <= {"default"}
        assert any(style and style.reverse for style in styles), "the cursor must be seen"
