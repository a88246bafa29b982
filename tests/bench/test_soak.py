"""The soak, small: what must hold of a hundred kills holds of three."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from kcode.context import ORPHAN_TEXT
from kcode.events import PlainDisplay
from kcode.messages import Message, ToolCall, ToolResult, tool, user
from kcode.model import Usage
from kcode.transcript import Answered, Record, Said
from kcode_bench.soak import Told, effects_of, lost, reprefilled
from kcode_bench.soak_plan import Reader, look, make_plan


@pytest.mark.slow
def test_killed_sessions_end_as_if_nothing_had_happened() -> None:
    command = [sys.executable, "-m", "kcode_bench.soak", "--calls", "40", "--kills", "4", "--sessions", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    expected = {"kills": 4, "resumed": 4, "records_lost": 0, "effects_doubled": 0, "effects_missing": 0, "reprefilled_tokens": 0}
    assert {name: figures[name] for name in expected} == expected
    assert figures["trees_equal"]
    assert figures["calls"] >= 40
    assert figures["rss_mb"] < 300


def conversation(*texts: str) -> list[Message]:
    messages = [user("go")]
    for number, text in enumerate(texts):
        call = ToolCall(str(number), "bash", "{}")
        messages += [Message("assistant", (call,)), tool(ToolResult(call.id, call.name, text, is_error=text == ORPHAN_TEXT))]
    return messages


def test_what_was_interrupted_is_looked_at_before_it_is_repeated() -> None:
    plan = make_plan(10)
    reader = Reader(plan)
    assert reader.next(conversation()) == plan[0]
    assert reader.next(conversation("made", ORPHAN_TEXT)) == look(1, plan[1])
    assert reader.next(conversation("made", ORPHAN_TEXT, ORPHAN_TEXT)) == look(1, plan[1])
    assert reader.next(conversation("made", ORPHAN_TEXT, "not-yet-done 1")) == plan[1]
    assert reader.next(conversation("made", ORPHAN_TEXT, "already-done 1")) == plan[2]
    assert reader.next(conversation("made", "", ORPHAN_TEXT)) == plan[2], "a read has nothing to repeat"
    assert reader.next(conversation(*["fine"] * 10)) is None


def test_the_figures_see_what_they_are_to_see() -> None:
    state = {"journal.txt": "step 1\nstep 1\n", "log.md": "# Log\nstep 6\n", "<commits>": "step 7 abc\nstart def\n"}
    assert effects_of(state) == Counter({"journal.txt: step 1": 2, "log.md: step 6": 1, "<commits>: step 7": 1})
    called = Message("assistant", (ToolCall("a", "read", "{}"),))
    answered = Answered(ToolResult("a", "read", "x"), PlainDisplay("x"), 0.1)
    records: list[Record] = [Said(called, Usage(100, 0, 10)), answered, Said(called, Usage(120, 108, 10))]
    assert reprefilled(records) == 1
    assert lost([Said(called, None), answered], Told(said=["a"], answered=["a"])) == 0
    assert lost([Said(called, None)], Told(said=["a"], answered=["a"])) == 2
    assert lost([Said(called, None), answered, answered], Told(said=["a", "b"])) == 2
