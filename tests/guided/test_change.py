"""Turns without a failing test: questions are answered, changes are made at places that exist and judged."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from kcode.approval import Question
from kcode.approval import Reply as Answered
from kcode.context import orphans
from kcode.events import CallFinished, CallStarted, Event, Notice, StepStarted, TestsDisplay, TextPiece
from kcode.model import ModelEvent, ModelRequest
from kcode.models.scripted import Reply, Script, ScriptedCall, ScriptedModel
from kcode.turn import Limits
from tests.core.conftest import collect, ending
from tests.guided.conftest import Begin, Write, tree_of

CALC = '''"""Sums."""

LIMIT = 10


def add(a, b):
    """The sum."""
    return a + b


def greet(name):
    return f"Hello {name}"


if __name__ == "__main__":
    print(greet("you"))
'''
TESTS = """from calc import add, greet


def test_add():
    assert add(2, 3) == 5


def test_greet():
    assert greet("Ada").endswith("Ada")
"""
PROJECT = {"calc.py": CALC, "tests/test_calc.py": TESTS}


def code(text: str) -> Reply:
    return Reply(text=f"```python\n{text}\n")


def scripted(*replies: Reply | str) -> ScriptedModel:
    """A model that cannot score, so that it is asked for every decision."""
    return ScriptedModel(Script(replies=tuple(Reply(text=reply) if isinstance(reply, str) else reply for reply in replies)))


def runs_of(events: list[Event]) -> list[TestsDisplay]:
    return [event.display for event in events if isinstance(event, CallFinished) and isinstance(event.display, TestsDisplay)]


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


@pytest.fixture
def project(write: Write, bare_python: None) -> None:
    write(PROJECT)


@pytest.mark.usefixtures("project")
async def test_a_question_is_answered_from_the_files_and_nothing_runs(begin: Begin, workspace: Path) -> None:
    before = tree_of(workspace)
    model = scripted("question", "It adds two numbers.")
    events = await collect(await begin(model), "does add round its sum?")
    end = ending(events)
    assert (end.status, end.result, end.steps) == ("finished", "It adds two numbers.", 2)
    assert not any(isinstance(event, CallStarted) for event in events)
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == "It adds two numbers."
    assert model.requests[0].grammar == 'start: "question" | "task" | "greeting"'
    asked = model.requests[1]
    assert asked.tools == ()
    assert [message.role for message in asked.messages] == ["system", "user"], "the decision is not part of the conversation"
    assert "return a + b" in asked.messages[-1].text
    assert tree_of(workspace) == before


@pytest.mark.usefixtures("project")
async def test_a_greeting_is_answered_at_once(begin: Begin) -> None:
    """No file is read for it: reading is what takes long."""
    model = scripted("greeting", "Hello! What can I do for you?")
    events = await collect(await begin(model), "good morning")
    assert (ending(events).status, ending(events).result) == ("finished", "Hello! What can I do for you?")
    assert not any(isinstance(event, CallStarted) for event in events)
    assert [message.text for message in model.requests[1].messages] == ["head", "good morning"]


@pytest.mark.usefixtures("project")
async def test_who_wants_an_explanation_gets_no_edit(begin: Begin, workspace: Path) -> None:
    """The model is not even asked: it took such a message for a task."""
    model = scripted("It adds.")
    end = ending(await collect(await begin(model), "explain add in calc.py at length"))
    assert (end.status, end.result) == ("finished", "It adds.")
    assert len(model.requests) == 1
    both = scripted("task", "rewrite greet in calc.py", code('def greet(name):\n    return f"Hi {name}"'))
    await collect(await begin(both), "tell me what greet says and then make it say Hi")
    assert (workspace / "calc.py").read_text() == CALC.replace("Hello", "Hi")


@pytest.mark.usefixtures("project")
async def test_an_answer_that_was_cut_off_is_no_edit(begin: Begin, workspace: Path) -> None:
    cut = Reply(text="```python\nLIMIT = 1", finish="length")
    model = scripted("task", "edit the first lines of calc.py", cut, code('"""Sums."""\n\nLIMIT = 100'))
    events = await collect(await begin(model), "set LIMIT in calc.py to 100")
    assert ending(events).status == "finished"
    assert (workspace / "calc.py").read_text() == CALC.replace("LIMIT = 10", "LIMIT = 100")
    assert "not tried: nothing was written, or the answer reached its length limit" in notices(events)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("text", ["greet should say Hi", "tests/test_calc.py fails; fix it"])
async def test_a_refusal_is_taken_as_one(begin: Begin, workspace: Path, write: Write, text: str) -> None:
    """Whoever says no to a call is not offered another one."""
    if "fails" in text:
        write({"calc.py": CALC.replace("a + b", "a - b")})
    before = tree_of(workspace)
    asked: list[Question] = []

    async def answer(question: Question) -> Answered:
        asked.append(question)
        return Answered("deny", "use a table") if question.access == "write" else Answered("allow")

    decided = () if "fails" in text else ("task", "rewrite greet in calc.py")
    model = scripted(*decided, code('def greet(name):\n    return f"Hi {name}"'), code("def add(a, b):\n    return b + a"))
    session = await begin(model, asker=answer)
    end = ending(await collect(session, text))
    assert [question.access for question in asked].count("write") == 1
    assert asked[-1].access == "write"
    assert asked[-1].before.startswith("def add(" if "fails" in text else "def greet(")
    assert asked[-1].before in (workspace / "calc.py").read_text()
    assert end.status == "interrupted"
    assert "the user denied" in end.reason
    assert "use a table" in end.reason
    assert end.result.endswith("Say what to do instead.")
    assert tree_of(workspace) == before
    assert orphans(session.messages) == []


@pytest.mark.usefixtures("project")
async def test_refused_tests_end_the_turn_before_anything_is_changed(begin: Begin, workspace: Path) -> None:
    async def no(question: Question) -> Answered:
        return Answered("deny")

    model = scripted()
    end = ending(await collect(await begin(model, asker=no), "tests/test_calc.py fails; fix it"))
    assert (end.status, end.result) == (
        "interrupted",
        "Not run: the user denied run tests tests/test_calc.py. Say what to do instead.",
    )
    assert model.requests == []


@pytest.mark.usefixtures("project")
async def test_a_function_is_changed_and_the_tests_judge_it(begin: Begin, workspace: Path) -> None:
    model = scripted("task", "rewrite greet in calc.py", code('def greet(name):\n    return f"Hi {name}"'))
    session = await begin(model)
    events = await collect(session, "greet should say Hi")
    end = ending(events)
    assert (workspace / "calc.py").read_text() == CALC.replace("Hello", "Hi")
    assert (end.status, end.result) == ("finished", "Changed greet in calc.py. Tests: 2 passed before, 2 passed now.")
    assert [(run.passed, run.failed) for run in runs_of(events)] == [(2, 0), (2, 0)]
    assert model.requests[2].prefix == "```python\ndef greet"
    assert [call.name for message in session.messages for call in message.calls] == ["rewrite_function", "run_tests"]
    assert orphans(session.messages) == []
    await session.undo()
    assert (workspace / "calc.py").read_text() == CALC


async def test_a_function_at_the_end_of_a_long_file_is_changed(begin: Begin, write: Write, workspace: Path) -> None:
    """The whole file is judged, not as much of it as a model would be shown."""
    body = "".join(f"def f{number}(x):\n    return x + {number}\n\n\n" for number in range(6000)).rstrip("\n") + "\n"
    assert 200_000 < len(body) < 256 << 10
    write({"long.py": body})
    model = scripted("task", "rewrite f5990 in long.py", code("def f5990(x):\n    return x + 12345"))
    end = ending(await collect(await begin(model), "f5990 should add 12345"))
    assert (end.status, end.attempts) == ("finished", 1), end
    assert (workspace / "long.py").read_text() == body.replace("x + 5990\n", "x + 12345\n")


@pytest.mark.usefixtures("project")
async def test_a_version_that_breaks_a_test_is_taken_back_and_shown(begin: Begin, workspace: Path) -> None:
    bad = code('def greet(name):\n    return f"{name}!"')
    good = code('def greet(name):\n    return f"Hi {name}"')
    model = scripted("task", "rewrite greet in calc.py", bad, good)
    session = await begin(model, seed=5)
    events = await collect(session, "greet should say Hi")
    assert (ending(events).status, ending(events).attempts) == ("finished", 2)
    assert (workspace / "calc.py").read_text() == CALC.replace("Hello", "Hi")
    again = model.requests[3]
    assert "{name}!" in again.messages[-1].text
    assert "test_greet" in again.messages[-1].text
    assert again.sampling.seed != model.requests[2].sampling.seed
    assert (again.sampling.temperature or 0) > (model.requests[2].sampling.temperature or 0)
    assert "{name}!" not in str(session.messages)
    assert "{name}!" in session.transcript_path.read_text()


@pytest.mark.usefixtures("project")
async def test_when_no_version_holds_nothing_is_changed_and_it_says_so(begin: Begin, workspace: Path) -> None:
    bad = [code(f'def greet(name):\n    return f"{{name}}{end}"') for end in "!?.,"]
    events = await collect(await begin(scripted("task", "rewrite greet in calc.py", *bad)), "greet should say Hi")
    end = ending(events)
    assert (end.status, end.attempts) == ("limit", 4)
    assert end.result.startswith("Not done: the files are as they were")
    assert tree_of(workspace) == {name: text.encode() for name, text in PROJECT.items()}


@pytest.mark.usefixtures("project")
async def test_a_new_function_goes_behind_the_others_with_its_imports(begin: Begin, workspace: Path) -> None:
    new = "import math\n\n\ndef root(x):\n    return math.sqrt(x)"
    model = scripted("task", "add a function root to calc.py", code(new))
    events = await collect(await begin(model), "add a function `root` to calc.py")
    end = ending(events)
    assert end.status == "finished", end
    assert end.result == "Added root to calc.py. Tests: 2 passed before, 2 passed now. No test mentions root."
    expected = CALC.replace('"""Sums."""\n', '"""Sums."""\nimport math\n')
    expected = expected.replace(' {name}"\n', ' {name}"\n\n\ndef root(x):\n    return math.sqrt(x)\n')
    assert (workspace / "calc.py").read_text() == expected
    assert model.requests[2].prefix == "```python\ndef root"


async def test_without_tests_a_name_that_nothing_defines_is_refused(begin: Begin, workspace: Path, write: Write) -> None:
    """Also where another scope of the file defines it: there it is not known either."""
    write({"calc.py": CALC})
    wrong = code("def root(x):\n    return math.sqrt(x)")
    other = code("def root(x):\n    return x**0.5 + b")
    elsewhere = code("def square_root(x):\n    return x**0.5")
    right = code("def root(x):\n    return x**0.5")
    events = await collect(
        await begin(scripted("task", "add a function root to calc.py", wrong, other, elsewhere, right)),
        "add a function root(x) to calc.py",
    )
    end = ending(events)
    assert end.status == "finished", end
    assert "No test has judged it" in end.result
    assert "math" not in (workspace / "calc.py").read_text()
    taken_back = [text for text in notices(events) if text.startswith(("taken back", "not tried"))]
    assert taken_back == [
        "taken back: math: used, but not defined in calc.py",
        "taken back: b: used, but not defined in calc.py",
        "not tried: this defines square_root; the name must be root",
    ]


async def test_a_method_goes_into_its_class(begin: Begin, workspace: Path, write: Write) -> None:
    box = "class Box:\n    def __init__(self):\n        self.items = []\n\n"
    box += "    def put(self, item):\n        self.items.append(item)\n\n\nBOX = Box()\n"
    write({"box.py": box})
    answer = code("class Box:\n    def clear(self):\n        self.items = []")
    events = await collect(
        await begin(scripted("task", "add a method clear to Box in box.py", answer)), "Box needs a method clear()"
    )
    assert ending(events).status == "finished", ending(events)
    added = "self.items.append(item)\n\n    def clear(self):\n        self.items = []\n"
    assert (workspace / "box.py").read_text() == box.replace("self.items.append(item)\n", added)


@pytest.mark.usefixtures("project")
async def test_a_name_is_changed_wherever_code_means_it(begin: Begin, workspace: Path, write: Write) -> None:
    write({"use.py": 'import calc\n\nprint(calc.add(1, 2), "add")\n{1}.add(2)\n'})
    model = scripted("task", "rename add everywhere", "plus")
    events = await collect(await begin(model), "rename add to plus")
    assert ending(events).status == "finished", ending(events)
    assert model.requests[2].grammar is not None
    assert '"plus"' in model.requests[2].grammar
    assert (workspace / "use.py").read_text() == 'import calc\n\nprint(calc.plus(1, 2), "add")\n{1}.add(2)\n'
    assert (workspace / "calc.py").read_text() == CALC.replace("def add", "def plus")
    assert (workspace / "tests/test_calc.py").read_text() == TESTS.replace("import add", "import plus").replace("add(2", "plus(2")


async def test_a_new_file_is_created_and_a_text_file_edited(begin: Begin, workspace: Path, write: Write) -> None:
    write({"calc.py": CALC, "README.md": "# Sums\n\nIt adds.\n"})
    model = scripted("task", "create red.py", code("def red(text):\n    return text"))
    assert ending(await collect(await begin(model), "create red.py with a function red(text)")).status == "finished"
    assert (workspace / "red.py").read_text() == "def red(text):\n    return text\n"
    model = scripted("task", "edit README.md", Reply(text="````\n# Sums\n\nIt adds:\n```\nadd(1, 2)\n```\n"))
    assert ending(await collect(await begin(model), "show an example in README.md")).status == "finished"
    assert (workspace / "README.md").read_text() == "# Sums\n\nIt adds:\n```\nadd(1, 2)\n```\n"


@pytest.mark.usefixtures("bare_python")
async def test_failing_tests_without_a_suspect_are_the_goal_of_a_change(begin: Begin, workspace: Path, write: Write) -> None:
    missing = "\n\ndef test_half():\n    import calc\n\n    assert calc.half(8) == 4\n"
    write({"calc.py": CALC, "tests/test_calc.py": missing.lstrip()})
    model = scripted(
        "add a function half to calc.py", code("def half(x):\n    return x / 3"), code("def half(x):\n    return x / 2")
    )
    events = await collect(await begin(model), "the tests fail: half() is missing")
    end = ending(events)
    assert end.status == "finished", end
    assert "Tests: 1 error before, 1 passed now." in end.result
    assert "x / 2" in (workspace / "calc.py").read_text()
    assert "Failing tests:" in model.requests[0].messages[1].text


@pytest.mark.usefixtures("bare_python")
async def test_failing_tests_that_no_change_mends_leave_everything_as_it_was(begin: Begin, workspace: Path, write: Write) -> None:
    files = {"tests/test_nothing.py": "def test_nothing():\n    assert 1 == 2\n", "calc.py": CALC}
    write(files)
    wrong = [code(f"def add(a, b):\n    return a + b + {number}") for number in range(4)]
    events = await collect(await begin(scripted("rewrite add in calc.py", *wrong)), "the test fails")
    end = ending(events)
    assert (end.status, end.result.split(":")[0]) == ("limit", "Not fixed")
    assert tree_of(workspace) == {name: text.encode() for name, text in files.items()}


@pytest.mark.usefixtures("project")
async def test_told_of_a_failure_where_nothing_fails_it_says_so(begin: Begin) -> None:
    model = scripted()
    end = ending(await collect(await begin(model), "a test fails, find the bug"))
    assert (end.status, model.requests) == ("limit", [])
    assert end.result == "Not done: no test fails (2 passed), and the message names nothing else to change."


@pytest.mark.usefixtures("project")
async def test_interrupt_takes_back_the_change_that_no_test_has_judged(begin: Begin, workspace: Path) -> None:
    endless = code('def greet(name):\n    import time\n\n    time.sleep(60)\n    return f"Hi {name}"')
    session = await begin(scripted("task", "rewrite greet in calc.py", endless))
    runs = 0
    events: list[Event] = []
    async with aclosing(session.submit("greet should say Hi")) as stream:
        async for event in stream:
            if isinstance(event, CallStarted) and event.call.name == "run_tests":
                runs += 1
                if runs == 2:
                    session.interrupt()
            events.append(event)
    assert ending(events).status == "interrupted"
    assert (workspace / "calc.py").read_text() == CALC
    assert orphans(session.messages) == []


@pytest.mark.usefixtures("project")
async def test_limit_of_steps_ends_on_the_clean_tree(begin: Begin, workspace: Path) -> None:
    bad = code('def greet(name):\n    return f"{name}!"')
    model = scripted("task", "rewrite greet in calc.py", bad, bad)
    end = ending(await collect(await begin(model, Limits(steps=3)), "greet should say Hi"))
    assert (end.status, end.steps) == ("limit", 3)
    assert (workspace / "calc.py").read_text() == CALC


@pytest.mark.usefixtures("project")
async def test_what_the_person_says_meanwhile_reaches_the_next_version(begin: Begin) -> None:
    bad = code('def greet(name):\n    return f"{name}!"')
    good = code('def greet(name):\n    return f"Hi {name}"')
    model = scripted("task", "rewrite greet in calc.py", bad, good)
    session = await begin(model)
    async with aclosing(session.submit("greet should say Hi")) as stream:
        async for event in stream:
            if isinstance(event, StepStarted) and event.step == 3:
                assert session.steer("the name stays last")
    assert [message.text for message in model.requests[3].messages[2:3]] == ["the name stays last"]


class Unbound(ScriptedModel):
    """Like a server that knows neither grammar nor prefix."""

    @property
    def binds_answers(self) -> bool:
        return False

    @property
    def sees(self) -> bool | None:
        return None

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        assert request.grammar is None
        assert not request.prefix
        async for event in super().stream(request):
            yield event


@pytest.mark.usefixtures("project")
async def test_a_model_that_cannot_be_bound_works_freely(begin: Begin, workspace: Path) -> None:
    arguments = {"path": "calc.py", "old": "Hello", "new": "Hi"}
    call = ScriptedCall(name="str_replace", arguments=json.dumps(arguments))
    model = Unbound(Script(replies=(Reply(calls=(call,)), Reply(text="It says Hi."))))
    events = await collect(await begin(model), "greet should say Hi")
    assert (ending(events).status, ending(events).result) == ("finished", "It says Hi.")
    assert (workspace / "calc.py").read_text() == CALC.replace("Hello", "Hi")
