"""What a message says, as a test: what it imports, and turns that such a test judges, over a real sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kcode.events import CallFinished, Event, Notice, TestsDisplay
from kcode.guided.reproduction import reproduce
from kcode.models.scripted import Reply
from kcode.tools.testing.run import run_project_tests
from kcode_sandbox.sandbox import Sandbox
from tests.core.conftest import collect, ending
from tests.fakes.text_model import ReadingModel
from tests.guided.conftest import Begin, Write, source, tree_of

BROKEN = '''"""Sums."""


def add(a, b):
    """The sum."""
    return a - b


def ratio(a, b):
    return a / b
'''
RIGHT = BROKEN.replace("a - b", "a + b")
SAID = "add(2, 3) returns -1, but it should return 5"


def runs(events: list[Event]) -> list[tuple[int, int]]:
    """Passed and failed of each run of tests."""
    displays = [event.display for event in events if isinstance(event, CallFinished)]
    return [(display.passed, display.failed) for display in displays if isinstance(display, TestsDisplay)]


@pytest.mark.parametrize(
    ("call", "files", "line"),
    [
        ("add(2, 3)", {"calc.py": BROKEN}, "add = module('', 'calc').add"),
        ("calc.add(2, 3)", {"calc.py": BROKEN}, "calc = module('', 'calc')"),
        ("add(2, 3)", {"src/sums/calc.py": BROKEN, "src/sums/__init__.py": ""}, "add = module('src', 'sums.calc').add"),
        ("sums.add(2, 3)", {"src/sums/__init__.py": BROKEN}, "sums = module('src', 'sums')"),
        ("add(2, 3)", {"calc.py": BROKEN, "tests/test_calc.py": BROKEN}, "add = module('', 'calc').add"),
        ("add(Decimal('2'), 3)", {"calc.py": BROKEN}, "from decimal import Decimal"),
        ("add(math.floor(2.5), 3)", {"calc.py": BROKEN}, "import math"),
    ],
)
def test_names_come_from_where_they_are_defined(call: str, files: dict[str, str], line: str) -> None:
    found = reproduce(f"{call} returns 1, but it should return 5", [source(path, text) for path, text in files.items()])
    assert found is not None
    assert line in found.files[found.path].decode().split("\n")


@pytest.mark.parametrize(
    ("call", "files"),
    [
        ("add(x, 3)", {"calc.py": BROKEN}),
        ("mean([1])", {"calc.py": BROKEN}),
        ("len([1])", {"calc.py": BROKEN}),
        ("add(2, 3)", {"calc.py": BROKEN, "other.py": BROKEN}),
        ("add(2, 3)", {"calc.js": "function add(a, b) { return a - b }"}),
    ],
)
def test_a_call_of_what_is_unknown_or_ambiguous_is_no_test(call: str, files: dict[str, str]) -> None:
    assert reproduce(f"{call} returns 1, but it should return 5", [source(path, text) for path, text in files.items()]) is None


@pytest.mark.usefixtures("bare_python")
async def test_what_is_said_is_repaired_without_any_test_in_the_project(begin: Begin, workspace: Path, write: Write) -> None:
    write({"calc.py": BROKEN})
    session = await begin(ReadingModel(RIGHT))
    events = await collect(session, SAID)
    assert (workspace / "calc.py").read_text() == RIGHT
    assert set(tree_of(workspace)) == {"calc.py"}
    assert ending(events).reason == "the tests pass"
    assert "as the message says it should be. No test of the project runs here." in ending(events).result
    assert runs(events)[0] == (0, 1)


@pytest.mark.usefixtures("bare_python")
async def test_a_repair_that_breaks_a_test_is_none(begin: Begin, workspace: Path, write: Write) -> None:
    # The test needs what the message calls wrong: then nothing is changed.
    tests = "from calc import add\n\n\ndef test_add():\n    assert add(2, 3) == -1\n"
    write({"calc.py": BROKEN, "test_calc.py": tests})
    again = Reply(text='```python\ndef add(a, b):\n    """The sum."""\n    return a - b\n')
    session = await begin(ReadingModel(RIGHT, replies=(again,) * 12))
    events = await collect(session, SAID)
    assert (workspace / "calc.py").read_text() == BROKEN
    assert "none made the tests pass" in ending(events).reason
    assert (1, 0) in runs(events), "the repair does what the message says"


@pytest.mark.usefixtures("bare_python")
async def test_tests_that_cannot_run_here_stand_in_no_way(begin: Begin, workspace: Path, write: Write) -> None:
    tests = "import not_installed_anywhere\nfrom calc import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
    write({"calc.py": BROKEN, "test_calc.py": tests})
    session = await begin(ReadingModel(RIGHT))
    events = await collect(session, SAID)
    assert (workspace / "calc.py").read_text() == RIGHT
    assert "own tests fail as they did before: 1 error" in ending(events).result


@pytest.mark.usefixtures("bare_python")
@pytest.mark.parametrize(
    "text", ["add(2, 3) returns 7, but it should return 5", "add(2, 3) raises KeyError, but it should return 5"]
)
async def test_what_is_not_so_is_said_and_not_repaired(begin: Begin, workspace: Path, write: Write, text: str) -> None:
    write({"calc.py": BROKEN})
    session = await begin(ReadingModel(RIGHT))
    events = await collect(session, text)
    told = [event.text for event in events if isinstance(event, Notice)]
    assert any("add(2, 3)" in line and "does not do what is said of it" in line for line in told)


@pytest.mark.usefixtures("bare_python")
async def test_a_call_that_cannot_be_tried_is_changed_where_it_is(begin: Begin, workspace: Path, write: Write) -> None:
    # The package that is missing hides what the call does; blank lines alone are no change.
    head = "import not_installed_anywhere\n\n\n"
    write({"calc.py": head + BROKEN, "other.py": "def subtract(a, b):\n    return a - b\n"})
    replies = (
        Reply(text='```python\ndef add(a, b):\n    """The sum."""\n\n    return a - b\n'),
        Reply(text='```python\ndef add(a, b):\n    """The sum."""\n    return a + b\n'),
    )
    session = await begin(ReadingModel(replies=replies))
    events = await collect(session, SAID)
    told = [event.text for event in events if isinstance(event, Notice)]
    assert "add(2, 3) cannot be tried: not_installed_anywhere is not installed" in told
    assert "taken back: only blank lines are different from before" in told
    assert (workspace / "calc.py").read_text() == head + RIGHT


@pytest.mark.usefixtures("bare_python")
async def test_another_function_is_not_changed_for_one_that_is_too_long(begin: Begin, workspace: Path, write: Write) -> None:
    long = "import not_installed_anywhere\n\n\ndef add(a, b):\n" + "    a = a + 0\n" * 200 + "    return a - b\n"
    files = {"calc.py": long + "\n\ndef subtract(a, b):\n    return a - b\n"}
    write(files)
    end = ending(await collect(await begin(ReadingModel()), SAID))
    assert (workspace / "calc.py").read_text() == files["calc.py"]
    assert end.result == "Not done: the files are as they were: add cannot be written anew in one piece"


@pytest.mark.usefixtures("bare_python")
async def test_tests_that_need_a_package_are_named_and_nothing_is_guessed(begin: Begin, workspace: Path, write: Write) -> None:
    write({"calc.py": BROKEN, "test_calc.py": "import not_installed_anywhere\n\n\ndef test_it():\n    assert True\n"})
    session = await begin(ReadingModel(RIGHT))
    events = await collect(session, "the tests fail, please fix it")
    assert (workspace / "calc.py").read_text() == BROKEN
    assert "not_installed_anywhere is not installed" in ending(events).result


@pytest.mark.usefixtures("bare_python")
@pytest.mark.parametrize(
    ("call", "value", "wanted", "is_right"),
    [
        ("give()", "iter([1, 2])", "[1, 2]", True),
        ("give()", "(1, 2)", "[1, 2]", True),
        ("give()", "'ab'", "ab", True),
        ("give()", "1", "True", False),
        ("give()", "True", "1", False),
        ("give()", "'5'", "5", False),
        ("give()", "{1: 2}", "[1]", False),
        ("give()", "1.0", "1", True),
    ],
)
async def test_a_value_is_compared_as_people_write_it(
    sandbox: Sandbox, write: Write, call: str, value: str, wanted: str, is_right: bool
) -> None:
    got = "cd" if wanted == "ab" else "77"
    found = reproduce(f"{call} returns {got}, but it should return {wanted}", [source("given.py", "def give():\n    return 1\n")])
    assert found is not None
    write({"given.py": f"def give():\n    return {value}\n"})
    for path, data in found.files.items():
        await sandbox.write(path, data)
    report = await run_project_tests(sandbox, found.path, 60)
    assert report.ok is is_right, json.dumps(report.text())
