"""Turns about failing tests: the driver over a real session, sandbox, tests and snapshots; only the model is a fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from kcode.context import build, orphans
from kcode.errors import EngineDied, ModelError
from kcode.events import CallFinished, CallStarted, Event, Notice, StepStarted, TestsDisplay, TextPiece
from kcode.guided.drive import REWRITES_PER_SUSPECT
from kcode.messages import Message
from kcode.model import ModelEvent, ModelRequest, ScoredText, TextModel
from kcode.models.scripted import Reply, Script, ScriptedModel
from kcode.session import Session
from kcode.transcript import open_existing
from kcode.turn import Limits
from tests.core.conftest import collect, ending
from tests.fakes.text_model import ReadingModel
from tests.guided.conftest import Begin, Write, tree_of

RIGHT = '''"""Sums."""


def add(a, b):
    """The sum."""
    return a + b


def greet(name):
    return f"Hello {name}"
'''
BROKEN = RIGHT.replace("a + b", "a - b")
WORSE = RIGHT.replace("a + b", "a * b")
# Each run leaves a trace, which belongs to the tree as well.
TESTS = """from pathlib import Path

from calc import add, greet


def test_add():
    Path("trace.txt").write_text(str(add(2, 3)))
    assert add(2, 3) == 5


def test_greet():
    assert greet("Ada") == "Hello Ada"
"""
PROJECT = {"calc.py": BROKEN, "tests/test_calc.py": TESTS}
TASK = "tests/test_calc.py fails; fix the bug"


def rewrite(expression: str, extra: str = "") -> Reply:
    """An answer that begins as the driver wants it to."""
    return Reply(text=f'```python\ndef add(a, b):\n    """The sum."""\n{extra}    return {expression}\n')


class Watched(ReadingModel):
    """Also keeps the project's files as they were at each request."""

    def __init__(self, folder: Path, *known: str, replies: tuple[Reply, ...] = ()) -> None:
        super().__init__(*known, replies=replies)
        self._folder = folder
        self.trees: list[dict[str, bytes]] = []

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        self.trees.append(tree_of(self._folder))
        async for event in super().stream(request):
            yield event

    async def score(self, text: str, start: int, alternatives: int) -> ScoredText:
        self.trees.append(tree_of(self._folder))
        return await super().score(text, start, alternatives)


@pytest.fixture
def project(write: Write, bare_python: None) -> None:
    write(PROJECT)


def runs(events: list[Event]) -> list[TestsDisplay]:
    return [event.display for event in events if isinstance(event, CallFinished) and isinstance(event.display, TestsDisplay)]


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


@pytest.mark.usefixtures("project")
async def test_first_surprise_is_the_repair(begin: Begin, workspace: Path) -> None:
    model = ReadingModel(RIGHT)
    session = await begin(model)
    events = await collect(session, TASK)
    assert (workspace / "calc.py").read_text() == RIGHT
    end = ending(events)
    assert (end.status, end.reason, end.attempts, end.steps) == ("finished", "the tests pass", 1, 1)
    assert end.result == (
        "Fixed add in calc.py. Line 6 of calc.py looks wrong: `return a - b`. Tests: 1 failed, 1 passed before, 2 passed now."
    )
    assert model.requests == [], "the model was asked although its reading was enough"
    # The test that the task names, before and after; then all tests.
    assert [(run.passed, run.failed) for run in runs(events)] == [(1, 1), (2, 0), (2, 0)]
    assert "suspected: add in calc.py" in notices(events)
    assert end.usage.prompt_tokens > 0
    assert "-    return a - b\n+    return a + b" in await session.diff()


@pytest.mark.usefixtures("project")
async def test_repair_is_told_to_the_model_as_its_own_call(begin: Begin) -> None:
    model = ReadingModel(RIGHT, replies=(Reply(text="You are welcome."),))
    session = await begin(model)
    await collect(session, TASK)
    told = session.messages
    assert [message.role for message in told] == ["system", "user", *["assistant", "tool"] * 3]
    assert TASK in told[1].text
    assert "test_add" in told[1].text
    assert BROKEN in told[1].text
    assert [call.name for message in told for call in message.calls] == ["rewrite_function", "run_tests", "run_tests"]
    assert orphans(told) == []
    # The next turn wants only words: one answer, after the very same messages, without what they told already.
    events = await collect(session, "thanks")
    assert ending(events).result == "You are welcome."
    (request,) = model.requests
    assert request.messages[: len(told)] == told
    (asked,) = request.messages[len(told) :]
    assert "calc.py\n  4-6 def add(a, b)" in asked.text
    assert "thanks" in asked.text
    assert "```" not in asked.text


@pytest.mark.usefixtures("project")
async def test_next_turn_repairs_what_the_person_changed_meanwhile(begin: Begin, workspace: Path) -> None:
    session = await begin(ReadingModel(RIGHT))
    await collect(session, TASK)
    (workspace / "calc.py").write_text(WORSE)
    events = await collect(session, "it fails again")
    end = ending(events)
    assert (end.status, end.attempts) == ("finished", 1), end
    assert (workspace / "calc.py").read_text() == RIGHT
    assert len(runs(events)) == 2


@pytest.mark.usefixtures("project")
async def test_rewrite_repairs_after_a_wrong_surprise(begin: Begin, workspace: Path) -> None:
    model = Watched(workspace, WORSE, replies=(rewrite("a + b"),))
    session = await begin(model)
    events = await collect(session, TASK)
    assert (workspace / "calc.py").read_text() == RIGHT
    end = ending(events)
    assert (end.status, end.attempts, end.steps) == ("finished", 2, 2)
    assert end.result.startswith("Fixed add in calc.py. A new version of add in calc.py.")
    assert [(run.passed, run.failed) for run in runs(events)] == [(1, 1), (1, 1), (2, 0), (2, 0)]
    # Whatever was tried, the model and the next repair find the tree as the first run of the tests left it.
    clean = {**{name: text.encode() for name, text in PROJECT.items()}, "trace.txt": b"-1"}
    assert len(model.trees) >= 3
    assert all(tree == clean for tree in model.trees)
    assert "a * b" not in str(session.messages)
    assert "a * b" in session.transcript_path.read_text(), "the transcript keeps what was tried"


@pytest.mark.usefixtures("bare_python")
async def test_a_weak_suspect_waits_for_the_strong_one(begin: Begin, write: Write, workspace: Path) -> None:
    """What passing tests call as well is read only when rewrites of the likelier function have failed."""
    helper = "def plus(a, b):\n    return a + b\n"
    calc = "from helper import plus\n\n\ndef add(a, b):\n    return plus(a, b)\n\n\ndef twice(a):\n    return plus(a, a)\n"
    tests = "from calc import add, twice\n\n\ndef test_add():\n    assert add(2, 3) == 5\n\n\n"
    tests += "def test_twice():\n    assert twice(0) == 0\n\n\ndef test_none():\n    assert twice(0) + 1\n"
    write({"helper.py": helper.replace("a + b", "a - b"), "calc.py": calc, "tests/test_calc.py": tests})
    model = Watched(workspace, helper, calc, replies=(rewrite("plus(b, a)"), rewrite("plus(a, a)"), rewrite("plus(b, b)")))
    end = ending(await collect(await begin(model), TASK))
    assert end.status == "finished", end
    assert end.result.startswith("Fixed plus in helper.py")
    assert (workspace / "helper.py").read_text() == helper
    assert len(model.requests) == REWRITES_PER_SUSPECT
    first, *rest = [text for text, _ in model.read]
    assert "plus(a, b)" in first
    assert any("a - b" in text for text in rest)


@pytest.mark.usefixtures("project")
async def test_when_nothing_works_the_tree_is_as_it_was(begin: Begin, workspace: Path) -> None:
    wrong = ("a * b", "b - a", "a // b")
    model = Watched(workspace, WORSE, replies=(rewrite("a ** b"), *map(rewrite, wrong)))
    session = await begin(model, seed=7)
    events = await collect(session, TASK)
    assert tree_of(workspace) == {**{name: text.encode() for name, text in PROJECT.items()}, "trace.txt": b"-1"}
    end = ending(events)
    # One surprise and three rewrites; a * b was tried before it was written.
    assert (end.status, end.attempts, end.steps) == ("limit", 1 + REWRITES_PER_SUSPECT, 5)
    assert end.reason == "4 repairs were tried and none made the tests pass; the files are as they were"
    assert end.result == f"Not fixed: {end.reason}. Still failing: 1 failed, 1 passed."
    assert len(runs(events)) == 1 + end.attempts
    # Every rewrite is asked after the same messages, with another seed and more freedom.
    firsts = {request.messages[:-1] for request in model.requests}
    assert len(firsts) == 1
    assert [message.role for message in model.requests[0].messages] == ["system", "user", "user"]
    assert len({request.sampling.seed for request in model.requests}) == 4, "an equal seed gives an equal answer"
    temperatures = [request.sampling.temperature or 0.0 for request in model.requests]
    assert temperatures == sorted(temperatures)
    assert (model.requests[0].sampling.seed, temperatures[0]) == (7, 0.0)
    assert [message.role for message in session.messages] == ["system", "user"]


@pytest.mark.usefixtures("project")
async def test_rewrite_equal_to_the_original_is_not_judged(begin: Begin, workspace: Path) -> None:
    model = ScriptedModel(Script(replies=(rewrite("a - b   ", "\n\n"), rewrite("a - b"), rewrite("a + b"))))
    assert not isinstance(model, TextModel)
    session = await begin(model)
    events = await collect(session, TASK)
    assert (workspace / "calc.py").read_text() == RIGHT
    end = ending(events)
    assert (end.status, end.attempts, end.steps) == ("finished", 1, 3)
    assert len(runs(events)) == 3


@pytest.mark.usefixtures("project")
async def test_answer_begins_with_the_signature_and_is_bound_to_one_block(begin: Begin) -> None:
    model = ScriptedModel(Script(replies=(rewrite("a + b"),)))
    await collect(await begin(model), TASK)
    (request,) = model.requests
    assert request.prefix == '```python\ndef add(a, b):\n    """The sum."""\n'
    assert (request.stop, request.tools) == (("\n```",), ())
    assert "`add` of calc.py" in request.messages[-1].text


@pytest.mark.usefixtures("project")
async def test_code_that_does_not_parse_is_no_attempt(begin: Begin, workspace: Path) -> None:
    model = Watched(workspace, replies=(rewrite("a +"), Reply(text="I cannot."), Reply(text="```python\n"), rewrite("a + b")))
    events = await collect(await begin(model), TASK)
    end = ending(events)
    assert (end.status, end.attempts, end.steps) == ("finished", 1, 4)
    assert (workspace / "calc.py").read_text() == RIGHT
    assert all(tree["calc.py"] == BROKEN.encode() for tree in model.trees)


@pytest.mark.usefixtures("project")
async def test_model_that_cannot_score_still_rewrites(begin: Begin, workspace: Path) -> None:
    model = ReadingModel(RIGHT, replies=(rewrite("a + b"),), broken=ModelError("HTTP 413: too long"))
    events = await collect(await begin(model), TASK)
    assert ending(events).status == "finished"
    assert (workspace / "calc.py").read_text() == RIGHT
    assert "add in calc.py was not scored: HTTP 413: too long" in notices(events)


@pytest.mark.usefixtures("project")
async def test_dead_engine_ends_the_turn_with_its_reason(begin: Begin, workspace: Path) -> None:
    model = ReadingModel(RIGHT, replies=(rewrite("a + b"),), broken=EngineDied("the engine ended: killed"))
    session = await begin(model)
    end = ending(await collect(session, TASK))
    assert (end.status, end.reason) == ("error", "the engine ended: killed")
    assert (workspace / "calc.py").read_text() == BROKEN
    assert not session.is_busy


@pytest.mark.usefixtures("project")
async def test_limit_of_steps_ends_on_the_clean_tree(begin: Begin, workspace: Path) -> None:
    model = ScriptedModel(Script(replies=(rewrite("a * b"), rewrite("b - a"))))
    events = await collect(await begin(model, Limits(steps=1)), TASK)
    end = ending(events)
    assert (end.status, end.steps) == ("limit", 1)
    assert "the limit is 1" in end.reason
    assert (workspace / "calc.py").read_text() == BROKEN


@pytest.mark.usefixtures("project")
async def test_limit_of_steps_counts_repairs_that_came_of_reading(begin: Begin, workspace: Path) -> None:
    model = ReadingModel(WORSE, replies=(rewrite("a + b"),))
    end = ending(await collect(await begin(model, Limits(steps=1)), TASK))
    assert (end.status, end.steps, model.requests) == ("limit", 1, [])
    assert (workspace / "calc.py").read_text() == BROKEN


@pytest.mark.usefixtures("project")
async def test_context_is_counted_where_the_model_only_read(begin: Begin) -> None:
    model = ReadingModel(RIGHT)
    session = await begin(model)
    await collect(session, TASK)
    assert session.context_used == 0
    await session.count_context()
    counted = await model.count_tokens(session.messages)
    assert counted
    assert session.context_used == counted
    await session.undo()
    assert session.context_used == 0


async def interrupted_at(session: Session, kind: type[Event], name: str = "") -> list[Event]:
    """The turn's events when the person stops it at the second event of that kind (the first run of the tests is the probe)."""
    events: list[Event] = []
    seen = 0
    async with aclosing(session.submit(TASK)) as stream:
        async for event in stream:
            events.append(event)
            if isinstance(event, kind) and (not name or (isinstance(event, CallStarted) and event.call.name == name)):
                seen += 1
                if seen == 2:
                    session.interrupt()
    return events


async def kept_on_disk(session: Session) -> tuple[Message, ...]:
    """The conversation as the next process finds it."""
    await session.close()
    transcript = open_existing(session.transcript_path)
    try:
        return tuple(build(transcript.active))
    finally:
        transcript.close()


@pytest.mark.usefixtures("project")
async def test_interrupt_takes_back_the_repair_that_no_test_has_judged(begin: Begin, workspace: Path) -> None:
    endless = rewrite("a + b", "    import time\n\n    time.sleep(60)\n")
    session = await begin(ScriptedModel(Script(replies=(endless,))))
    events = await interrupted_at(session, CallStarted, "run_tests")
    assert ending(events).status == "interrupted"
    assert (workspace / "calc.py").read_text() == BROKEN
    assert orphans(session.messages) == []
    assert session.messages[-1].results[0].is_error
    assert [call.name for message in session.messages for call in message.calls] == ["rewrite_function", "run_tests"]
    await session.undo()
    assert (workspace / "calc.py").read_text() == BROKEN
    assert [message.role for message in session.messages] == ["system"]
    assert await kept_on_disk(session) == session.messages


@pytest.mark.usefixtures("project")
async def test_interrupted_rewrite_keeps_what_was_written(begin: Begin, workspace: Path) -> None:
    slow = Reply(text='```python\ndef add(a, b):\n    """The sum."""\n    return a + b\n', piece_delay_s=0.2)
    session = await begin(ScriptedModel(Script(replies=(slow,))))
    events = await interrupted_at(session, TextPiece)
    assert ending(events).status == "interrupted"
    assert (workspace / "calc.py").read_text() == BROKEN
    assert [message.role for message in session.messages] == ["system", "user", "user", "assistant"]
    assert session.messages[-1].text.startswith("```python")
    assert sum(isinstance(event, StepStarted) for event in events) == 1
    assert await kept_on_disk(session) == session.messages


class Hanging(ReadingModel):
    """Never finishes reading; `let_go` says whether it was told to stop."""

    let_go = False

    async def score(self, text: str, start: int, alternatives: int) -> ScoredText:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.let_go = True
            raise
        return await super().score(text, start, alternatives)


@pytest.mark.usefixtures("project")
async def test_interrupted_reading_is_cancelled(begin: Begin, workspace: Path) -> None:
    model = Hanging(RIGHT)
    session = await begin(model)
    events = await interrupted_at(session, Notice)
    assert notices(events)[1] == "reading add in calc.py for what is unlikely in it"
    assert ending(events).status == "interrupted"
    assert model.let_go
    assert (workspace / "calc.py").read_text() == BROKEN
    assert [message.role for message in session.messages] == ["system", "user"]


@pytest.mark.usefixtures("project")
async def test_what_the_person_says_meanwhile_reaches_the_next_rewrite(begin: Begin) -> None:
    model = ScriptedModel(Script(replies=(rewrite("a * b"), rewrite("a + b"))))
    session = await begin(model)
    async with aclosing(session.submit(TASK)) as stream:
        async for event in stream:
            if isinstance(event, StepStarted) and event.step == 1:
                assert session.steer("it should add")
    assert [len(request.messages) for request in model.requests] == [3, 4]
    assert model.requests[1].messages[:2] == model.requests[0].messages[:2]
    assert model.requests[1].messages[2].text == "it should add"


async def test_method_in_a_crlf_file_under_pytest(begin: Begin, workspace: Path, write: Write) -> None:
    right = 'class Box:\r\n    """A box."""\r\n\r\n    def area(self, w, h):\r\n        return w * h\r\n'
    test = "from box import Box\n\n\ndef test_area():\n    assert Box().area(2, 3) == 6\n"
    write({"box.py": right.replace("w * h", "w + h"), "test_box.py": test, "conftest.py": ""})
    events = await collect(await begin(ReadingModel(right)), "fix the failing test")
    assert ending(events).status == "finished", ending(events)
    assert (workspace / "box.py").read_bytes() == right.encode()
