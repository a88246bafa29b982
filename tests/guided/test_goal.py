"""What counts as fixed where several tests fail: real sessions, sandboxes, tests and snapshots; only the model is a fake."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcode.events import CallFinished, Event, TestsDisplay
from kcode.guided.goal import choose, named_target
from kcode.tools.testing.report import FailingTest, TestReport
from tests.core.conftest import collect, ending
from tests.fakes.text_model import ReadingModel
from tests.guided.conftest import Begin, Write

RIGHT = "def add(a, b):\n    return a + b\n\n\ndef double(a):\n    return add(a, a)\n"
BROKEN = RIGHT.replace("a + b", "a - b")
TESTS = "from calc import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
# Needs what a sandbox does not give; it failed before and is none of the model's business.
ELSEWHERE = "def test_remote():\n    raise OSError('no network')\n"
GUARD = "from calc import double\n\n\ndef test_double():\n    assert double(0) == 0\n"


def runs(events: list[Event]) -> list[tuple[int, int]]:
    shown = [event.display for event in events if isinstance(event, CallFinished)]
    return [(run.passed, run.failed) for run in shown if isinstance(run, TestsDisplay)]


@pytest.mark.usefixtures("bare_python")
@pytest.mark.parametrize("task", ["tests/test_calc.py fails; fix it", "test_add fails; fix the bug"])
async def test_what_failed_elsewhere_may_go_on_failing(begin: Begin, write: Write, workspace: Path, task: str) -> None:
    write({"calc.py": BROKEN, "tests/test_calc.py": TESTS, "tests/test_remote.py": ELSEWHERE, "tests/test_guard.py": GUARD})
    events = await collect(await begin(ReadingModel(RIGHT)), task)
    end = ending(events)
    assert (end.status, end.attempts) == ("finished", 1), end
    assert end.result.endswith("The tests that still fail failed before, too.")
    assert (workspace / "calc.py").read_text() == RIGHT
    assert runs(events)[-1] == ((1, 2) if "/" in task else (2, 1))


@pytest.mark.usefixtures("bare_python")
@pytest.mark.parametrize("task", ["tests/test_calc.py fails; fix it", "test_add fails; fix the bug"])
async def test_a_repair_that_breaks_another_test_is_refused(begin: Begin, write: Write, workspace: Path, task: str) -> None:
    harmful = BROKEN.replace("a - b", "a + b if a else 1")
    write({"calc.py": BROKEN, "tests/test_calc.py": TESTS, "tests/test_remote.py": ELSEWHERE, "tests/test_guard.py": GUARD})
    events = await collect(await begin(ReadingModel(harmful)), task)
    end = ending(events)
    # The likeliest repair is judged first and refused; a smaller edit of it is right.
    assert (end.status, end.attempts) == ("finished", 2), end
    assert (workspace / "calc.py").read_text() == RIGHT


@pytest.mark.usefixtures("bare_python")
async def test_what_reaches_no_code_need_not_pass(begin: Begin, write: Write, workspace: Path) -> None:
    """A test that fails by what the project lacks is found out by calling nothing of it: nobody has to name the other."""
    write({"calc.py": BROKEN, "tests/test_calc.py": TESTS, "tests/test_remote.py": ELSEWHERE})
    end = ending(await collect(await begin(ReadingModel(RIGHT)), "the tests fail; fix them"))
    assert (end.status, end.attempts) == ("finished", 1), end
    assert "1 failed, 1 error before, 1 error, 1 passed now" in end.result
    assert (workspace / "calc.py").read_text() == RIGHT
    everything = choose("fix the tests", TestReport("pytest", failed=1, failing=(FailingTest("test_remote.py::test_x", ""),)), "")
    assert len(everything.wanted) == 1


@pytest.mark.usefixtures("bare_python")
async def test_a_test_file_with_a_mistake_in_its_syntax_is_left_alone(begin: Begin, write: Write, workspace: Path) -> None:
    write({"calc.py": BROKEN, "tests/test_calc.py": TESTS, "tests/test_other.py": "def test_other(:\n    pass\n"})
    end = ending(await collect(await begin(ReadingModel(RIGHT)), "the tests fail; fix them"))
    assert (end.status, end.attempts) == ("finished", 1), end
    assert end.result.endswith("The tests that still fail failed before, too.")
    assert (workspace / "calc.py").read_text() == RIGHT


async def test_where_no_tests_are_a_failure_is_not_looked_for(begin: Begin) -> None:
    end = ending(await collect(await begin(ReadingModel(RIGHT)), "the tests fail; fix them"))
    assert end.status == "limit"
    assert end.result.startswith("Not done: no tests found: no Python test files")
    assert end.result.endswith("and the message names nothing else to change.")


@pytest.mark.usefixtures("bare_python")
async def test_a_named_test_that_passes_makes_all_tests_speak(begin: Begin, write: Write, workspace: Path) -> None:
    write({"calc.py": BROKEN, "tests/test_calc.py": TESTS, "tests/test_guard.py": GUARD})
    events = await collect(await begin(ReadingModel(RIGHT)), "tests/test_guard.py is fine, but something else fails; fix it")
    assert ending(events).status == "finished"
    assert (workspace / "calc.py").read_text() == RIGHT


@pytest.mark.parametrize(
    ("task", "target"),
    [
        ("tests/test_a.py fails", "tests/test_a.py"),
        ("Fix tests/test_a.py::test_x.", "tests/test_a.py::test_x"),
        ("tests/test_a.py::Sums::test_x[1-2] fails", "tests/test_a.py::Sums::test_x[1-2]"),
        ("tests/test_a.py and tests/test_b.py fail", ""),
        ("calc.py is wrong", ""),
        ("test/cart.test.js fails", "test/cart.test.js"),
        ("it fails", ""),
    ],
)
def test_the_test_that_a_task_names(task: str, target: str) -> None:
    assert named_target(task) == target


def test_goal_is_what_the_task_names_else_everything() -> None:
    one, two = FailingTest("tests/test_a.py::test_one", ""), FailingTest("tests/test_b.py::T::test_two[3]", "")
    report = TestReport("pytest", passed=1, failed=2, failing=(one, two), duration_s=60)
    named = choose("test_two fails", report, "")
    assert (named.wanted, named.known, named.quick) == ((two,), {one.id}, two.id)
    every = choose("fix it", report, "")
    assert (every.wanted, every.known, every.quick) == ((one, two), frozenset(), "")
    assert choose("test_a.py fails", report, "").wanted == (one,)
    assert not every.met(TestReport("pytest", passed=2, failed=1, failing=(two,)))
    assert named.met(TestReport("pytest", passed=2, failed=1, failing=(one,)))
    assert not named.met(TestReport("pytest", passed=2, failed=1, failing=(one,), problem="stopped"))
