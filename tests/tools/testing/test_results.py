"""Parsers of what test programs print; the outputs in tests/data/test_output are those of real runs (go's is written by hand)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kcode.tools.testing.compiled_results import parse_cargo, parse_go
from kcode.tools.testing.pytest_results import counted, running_test
from kcode.tools.testing.pytest_results import parse as parse_pytest
from kcode.tools.testing.report import FailingTest, Frame, Results, TestReport
from kcode.tools.testing.tap_results import parse as parse_tap
from kcode.tools.testing.text_results import parse as parse_text

OUTPUTS = Path(__file__).resolve().parents[2] / "data" / "test_output"
PARSERS: dict[str, Callable[[str], Results | None]] = {
    "jest": lambda log: parse_text(log, "/project"),
    "mocha": lambda log: parse_text(log, "/project"),
    "vitest": lambda log: parse_text(log, "/project"),
    "unittest": lambda log: parse_text(log, "/project"),
    "tap": lambda log: parse_tap(log, "/project"),
    "go": parse_go,
    "cargo": parse_cargo,
}


def parsed(name: str) -> Results:
    found = PARSERS[name]((OUTPUTS / f"{name}.txt").read_text())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "passed", "failed", "errors", "skipped"),
    [
        ("jest", 2, 4, 1, 2),
        ("mocha", 1, 2, 0, 1),
        ("vitest", 1, 2, 0, 1),
        ("unittest", 0, 2, 1, 2),
        ("tap", 1, 3, 1, 1),
        ("go", 1, 1, 1, 1),
        ("cargo", 1, 2, 0, 1),
    ],
)
def test_counts(name: str, passed: int, failed: int, errors: int, skipped: int) -> None:
    found = parsed(name)
    assert (found.passed, found.failed, found.errors, found.skipped) == (passed, failed, errors, skipped)
    assert len(found.failing) == failed + errors


@pytest.mark.parametrize(
    ("name", "index", "expected"),
    [
        (
            "jest",
            0,
            FailingTest(
                "m/a.test.js › suite › adds",
                "expect(received).toBe(expected) // Object.is equality\nExpected: 3\nReceived: -1",
                (Frame("m/a.test.js", 4, "", ""),),
            ),
        ),
        (
            "mocha",
            1,
            FailingTest(
                "suite > throws", "TypeError: null a", (Frame("m/a.test.js", 5, "", ""), Frame("src/a.js", 1, "exports.f", ""))
            ),
        ),
        (
            "vitest",
            1,
            FailingTest(
                "v/b.test.mjs > suite > throws",
                "TypeError: null a",
                (Frame("v/b.test.mjs", 5, "", ""), Frame("src/b.mjs", 1, "f", "")),
            ),
        ),
        (
            "tap",
            0,
            FailingTest(
                "adds", "AssertionError: Expected values to be strictly equal:\n\n-1 !== 3", (Frame("a.test.js", 3, "", ""),)
            ),
        ),
        (
            "tap",
            3,
            FailingTest("b.test.js", "b.test.js:1\nsyntax error here(\n       ^^^^^\nSyntaxError: Unexpected identifier 'error'"),
        ),
        (
            "go",
            0,
            FailingTest(
                "example.org/m TestSum/negative", "sum_test.go:17: Sum(-1, -2) = 3, want -3", (Frame("sum_test.go", 17, "", ""),)
            ),
        ),
        ("go", 1, FailingTest("example.org/m/broken", "broken/b.go:4:9: undefined: missing")),
        (
            "cargo",
            0,
            FailingTest(
                "tests::bad",
                "assertion `left == right` failed: should be three\n  left: 1\n right: 3",
                (Frame("src/lib.rs", 5, "", ""),),
            ),
        ),
        (
            "unittest",
            0,
            FailingTest(
                "test_e (tests.test_c.T.test_e)",
                "ValueError: x is None",
                (
                    Frame("tests/test_c.py", 7, "test_e", "def test_e(self): f(None,1)"),
                    Frame("pkg/__init__.py", 2, "f", "return g(a) - b"),
                    Frame("pkg/__init__.py", 6, "g", 'raise ValueError("x is None")'),
                ),
            ),
        ),
    ],
)
def test_failures(name: str, index: int, expected: FailingTest) -> None:
    assert parsed(name).failing[index] == expected


def test_compiler_errors_are_the_failure_of_a_cargo_run() -> None:
    found = parse_cargo((OUTPUTS / "cargo_compile.txt").read_text())
    assert found is not None
    (failure,) = found.failing
    assert failure.message.startswith("error[E0425]: cannot find value `undefined` in this scope\n --> src/lib.rs:1:68")


def test_pytest_summaries_are_read_from_any_command() -> None:
    log = "FAILED tests/test_a.py::test_x[1-a b] - assert 1 == 2\n== 1 failed, 3 passed, 1 skipped, 2 errors in 0.12s ==\n"
    expected = Results(3, 1, 2, 1, (FailingTest("tests/test_a.py::test_x[1-a b]", "assert 1 == 2"),))
    assert parse_text(log, "/project") == expected


def test_unknown_output_is_no_result() -> None:
    assert parse_text("all fine\n", "/project") is None
    assert parse_tap("all fine\n", "/project") is None
    assert parse_go("all fine\n") is None
    assert parse_cargo("all fine\n") is None
    assert parse_pytest("<testsuites><testsuite", "") is None


def test_a_cut_off_pytest_log_names_the_running_test() -> None:
    log = (
        "collected 3 items\n\ntests/test_a.py::test_one PASSED [ 33%]\n"
        "tests/test_a.py::test_two FAILED [ 66%]\ntests/test_a.py::test_slow "
    )
    assert running_test(log) == "tests/test_a.py::test_slow"
    found = counted(log)
    assert (found.passed, found.failed, found.running) == (1, 1, "tests/test_a.py::test_slow")
    assert running_test(log + "PASSED [100%]\n") == ""


def test_the_report_for_the_model_is_bounded() -> None:
    failing = tuple(
        FailingTest(
            f"tests/test_a.py::test_{number}", "AssertionError: " + "x" * 5000, (Frame("a.py", number, "f", "y" * 500),) * 9
        )
        for number in range(50)
    )
    text = TestReport("pytest", 1, 50, 0, 0, failing, log="/tmp/log.txt", duration_s=1.25).text()
    assert len(text) < 3000
    assert text.startswith("pytest: 50 failed, 1 passed (1.2 s)\n\nFAILED tests/test_a.py::test_0\n  a.py:0 in f: yyy")
    assert "more failing: tests/test_a.py::test_" in text
    assert text.endswith("[whole output: /tmp/log.txt]")


def test_only_a_run_with_passing_tests_is_ok() -> None:
    assert TestReport("pytest", passed=1).ok
    assert not TestReport("pytest").ok
    assert not TestReport("pytest", passed=1, errors=1).ok
    assert not TestReport("pytest", passed=1, problem="stopped").ok
