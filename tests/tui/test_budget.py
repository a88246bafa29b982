"""What a long session may cost. The bounds are for slow, shared machines; the figures in the docs come from quiet ones."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from kcode.events import CallOutput, CallStarted, DiffDisplay, PlainDisplay, StepStarted, TextPiece, ThinkingPiece
from kcode.messages import Message, Text, ToolCall, ToolResult
from kcode.model import Usage
from kcode.transcript import Answered, Record, Said, Turn
from kcode.tui.port import Launch
from kcode.tui.widgets.prompt import Prompt
from kcode.tui.widgets.transcript import Transcript
from tests.fakes.tui_screen import enter, screen_text, until
from tests.fakes.tui_session import Hold, ScriptedSessions
from tests.tui.conftest import Start

BUDGET_S = 0.05
CI_MARGIN = 3
ANSWER = (
    "The test fails because **digits** are dropped:\n\n```python\nwords = re.findall(r'[a-z]+', title)\n```\n\n- one\n- two\n"
)
OLD = "".join(f"line {number} of the file\n" for number in range(60))
NEW = OLD.replace("line 30 of", "line thirty of")


def long_session(calls: int) -> list[Record]:
    records: list[Record] = [Turn(1, "fix the failing tests", "")]
    for number in range(calls):
        call = ToolCall(f"c{number}", "read" if number % 3 else "str_replace", '{"path": "src/a.py"}')
        display = PlainDisplay(OLD) if number % 3 else DiffDisplay("src/a.py", OLD, NEW)
        parts = (Text(ANSWER), call) if number % 4 == 0 else (call,)
        records.append(Said(Message("assistant", parts), Usage()))
        records.append(Answered(ToolResult(call.id, call.name, "ok"), display, 0.1))
    return records


async def test_300_calls_loaded_typing_and_appending_stay_quick(start: Start) -> None:
    sessions = ScriptedSessions(lambda text: [StepStarted(1), TextPiece("ok"), Hold()], history=long_session(300))
    began = time.perf_counter()
    app = start(sessions, launch=Launch("/repo", resume_id="abc"))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(app, "line thirty of the file")
        opened_s = time.perf_counter() - began
        prompt, transcript = app.screen.query_one(Prompt), app.screen.query_one(Transcript)
        await until(app, lambda: transcript.page.is_settled)
        keys: list[float] = []
        for number in range(15):
            began = time.perf_counter()
            await pilot._app._press_keys("abcdefghijklmno"[number])
            assert len(prompt.text) == number + 1
            app.screen._compositor.render_strips(app.size)
            keys.append(time.perf_counter() - began)
        prompt.put("")
        await enter(pilot, "go")
        await until(app, "ok")
        appends: list[float] = []
        for number in range(15):
            began = time.perf_counter()
            app.screen._show(TextPiece(f"\n\nparagraph {number} with some more words"))
            transcript._flush()
            assert f"paragraph {number}" in screen_text(app)
            appends.append(time.perf_counter() - began)
        sessions.opened[0].release.set()
    figures = {"open_s": opened_s, "key_s": statistics.median(keys), "append_s": statistics.median(appends)}
    assert figures["key_s"] < BUDGET_S * CI_MARGIN, figures
    assert figures["append_s"] < BUDGET_S * CI_MARGIN, figures
    assert figures["open_s"] < 1.0 * CI_MARGIN * 2, figures


async def test_a_flood_of_output_neither_blocks_typing_nor_grows(start: Start) -> None:
    call = ToolCall("c1", "bash", "{}")
    flood = [CallOutput("c1", "".join(f"line {number} of the flood\n" for number in range(100))) for _ in range(1000)]
    sessions = ScriptedSessions(
        lambda text: [CallStarted(call, "bash flood"), *flood, CallOutput("c1", "the last line\n"), Hold()]
    )
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        began = time.perf_counter()
        await enter(pilot, "go")
        await pilot.press(*"typed while it pours".replace(" ", "_"))
        await until(app, "the last line")
        assert app.screen.query_one(Prompt).text == "typed_while_it_pours"
        assert time.perf_counter() - began < 30
        blocks = app.screen.query_one(Transcript).page.blocks
        assert sum(len(getattr(block, "_live", "")) for block in blocks) < 20_000
        await pilot.press("escape")


async def test_streaming_costs_little_however_much_was_said(start: Start) -> None:
    pieces = [TextPiece(f"word{number} " if number % 50 else "\n\nNew paragraph ") for number in range(3000)]
    sessions = ScriptedSessions(lambda text: [ThinkingPiece("hm"), *pieces, TextPiece("THE-END")])
    app = start(sessions)
    async with app.run_test(size=(100, 30)) as pilot:
        began = time.perf_counter()
        await enter(pilot, "go")
        await until(app, "THE-END")
        assert time.perf_counter() - began < 20


def test_the_interface_imports_no_engine() -> None:
    code = "import sys, kcode.tui.app; print(sorted({'torch', 'numpy', 'kcode_backend', 'git'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_first_picture_waits_for_nothing_it_does_not_show() -> None:
    late = {
        "pydantic",
        "yaml",
        "httpx",
        "kcode.events",
        "kcode.transcript",
        "kcode.session",
        "kcode.tui.actions",
        "kcode.tui.prose",
    }
    code = f"import sys, kcode.command_line, kcode.commands.screen, kcode.tui.app; print(sorted({late!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_transcript_is_read_without_pydantic() -> None:
    code = "import sys, kcode.transcript, kcode.tui.replay; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
