"""Whether a change repairs: the test command on a tree before and after, compared test by test where that can be known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from kcode.ci.clean import harmless
from kcode.errors import StartError
from kcode.tools.testing.pytest_results import failing_test, node_id
from kcode.tools.testing.report import FailingTest, Results
from kcode.tools.testing.text_results import parse as parse_text
from kcode.tools.truncate import plain
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import ExecResult, Sandbox

MAX_OUTPUT_BYTES = 8 << 20
MAX_REPORT_BYTES = 16 << 20
FOLDER = "/tmp/kcode-ci"
REPORT = f"{FOLDER}/junit.xml"
# pytest adds them to its command line, however it is called; other programs know nothing of it.
ENVIRONMENT = {
    "PYTEST_ADDOPTS": f"--junitxml={REPORT} -o junit_family=xunit1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "CI": "true",
}
CANNOT_RUN = {126, 127}
MAX_NAMED = 5
Status = Literal["passed", "failed", "error", "skipped"]
Judge = Literal["each test", "counts of tests", "exit code"]


@dataclass(frozen=True, slots=True)
class TestRun:
    """One run of the command. `exit_code` is None when it was ended for time.

    `tests` is what became of each test, None where the runner does not tell; `results` are counts, None where none are known.
    """

    __test__ = False

    exit_code: int | None
    output: str
    duration_s: float
    tests: Mapping[str, Status] | None = None
    results: Results | None = None

    @property
    def passes(self) -> bool:
        return self.exit_code == 0

    @property
    def failing(self) -> tuple[FailingTest, ...]:
        return self.results.failing if self.results is not None else ()

    @property
    def told(self) -> str:
        """In one line."""
        how = "ended for time" if self.exit_code is None else f"exit code {self.exit_code}"
        if self.results is None:
            return how
        found = self.results
        counts = f"{found.passed} passed, {found.failed} failed, {found.errors} errors, {found.skipped} skipped"
        return f"{how}: {counts}"

    def document(self) -> dict[str, object]:
        found = self.results
        counts = None
        if found is not None:
            counts = {"passed": found.passed, "failed": found.failed, "errors": found.errors, "skipped": found.skipped}
        return {
            "exit_code": self.exit_code,
            "duration_s": round(self.duration_s, 3),
            "counts": counts,
            "failing": [test.id for test in self.failing],
        }


@dataclass(frozen=True, slots=True)
class Command:
    """What is run in the folder to work in, and for how long. `setup` comes before it, "" for none."""

    test: str
    setup: str
    timeout_s: float


async def set_up(sandbox: Sandbox, command: Command) -> None:
    """Run the set-up, if there is one. Raises StartError when it fails."""
    if not command.setup:
        return
    done = await _run(sandbox, command.setup, command)
    if done.exit_code != 0:
        last = (_text(done).strip().splitlines() or ["no output"])[-1]
        raise StartError(f"--setup {command.setup!r} ended with {done.exit_code}: {harmless(last, 300)}")


async def run_tests(sandbox: Sandbox, command: Command) -> TestRun:
    """Run the test command where everything is set up."""
    await sandbox.write(f"{FOLDER}/.keep", b"")
    done = await _run(sandbox, command.test, command)
    output = _text(done)
    tests, results = await _per_test(sandbox)
    if results is None:
        results = parse_text(output, str(sandbox.policy.workspace))
    return TestRun(done.exit_code, output, done.duration_s, tests, results)


async def _run(sandbox: Sandbox, line: str, command: Command) -> ExecResult:
    return await sandbox.exec(
        ["bash", "-c", line],
        timeout_s=command.timeout_s,
        environment=ENVIRONMENT,
        max_output=MAX_OUTPUT_BYTES,
    )


def _text(done: ExecResult) -> str:
    return plain(done.output.decode("utf-8", errors="replace"))


async def _per_test(sandbox: Sandbox) -> tuple[Mapping[str, Status] | None, Results | None]:
    try:
        data = (await sandbox.read(REPORT, max_bytes=MAX_REPORT_BYTES)).data
        root = ElementTree.fromstring(data.decode("utf-8", errors="replace"))
    except (FileError, ElementTree.ParseError):
        return None, None
    tests: dict[str, Status] = {}
    failing: list[FailingTest] = []
    for case in root.iter("testcase"):
        wrong = [child for child in case if child.tag in {"failure", "error"}]
        name, status = plain(node_id(case)), _status(case, wrong)
        # A test can pass and its clean-up fail: the worse of the two counts.
        if name not in tests or status in {"failed", "error"}:
            tests[name] = status
        if wrong:
            failing.append(failing_test(case, wrong[0]))
    counts = list(tests.values())
    results = Results(
        counts.count("passed"), counts.count("failed"), counts.count("error"), counts.count("skipped"), tuple(failing)
    )
    return tests, results


def _status(case: ElementTree.Element, wrong: list[ElementTree.Element]) -> Status:
    if wrong:
        return "failed" if wrong[0].tag == "failure" else "error"
    return "skipped" if case.find("skipped") is not None else "passed"


def cannot_run(run: TestRun) -> str:
    """Why the command says nothing about the code; "" when it may."""
    if run.exit_code in CANNOT_RUN:
        last = (run.output.strip().splitlines() or [""])[-1]
        return f"it cannot be run inside the sandbox (exit code {run.exit_code}): {harmless(last, 300)}"
    return ""


def judged_by(before: TestRun, after: TestRun) -> Judge:
    if before.tests is not None and after.tests is not None:
        return "each test"
    return "counts of tests" if before.results is not None and after.results is not None else "exit code"


def fault_of(before: TestRun, after: TestRun) -> str:
    """Why `after` does not show that what fails in `before` is repaired and nothing else is broken; "" when it does.

    When nothing fails in `before` only the second is asked.
    """
    if not after.passes:
        return f"the test command still fails ({after.told})"
    if before.tests is not None:
        return _fault_of_tests(before.tests, after.tests)
    if before.results is not None:
        return _fault_of_counts(before.results, after.results, must_gain=not before.passes)
    return ""


def _fault_of_tests(before: Mapping[str, Status], after: Mapping[str, Status] | None) -> str:
    if after is None:
        return "pytest wrote no report although the test command succeeded: what ran is not known"
    gone = [name for name, status in before.items() if status == "passed" and after.get(name) != "passed"]
    if gone:
        return f"passed before and not now: {_named(gone)}"
    # What could not be collected has no name of a test's; its tests have names of their own once it can.
    open_ones = [
        name
        for name, status in before.items()
        if status == "failed" or (status == "error" and "::" in name)
        if after.get(name) != "passed"
    ]
    if open_ones:
        return f"failed before and does not pass now: {_named(open_ones)}"
    left = [name for name, status in before.items() if status == "skipped" and name not in after]
    if left:
        return f"not run any more: {_named(left)}"
    return "" if "passed" in after.values() else "no test passed"


def _fault_of_counts(before: Results, after: Results | None, *, must_gain: bool) -> str:
    if after is None:
        return "the test command's output tells of no tests any more"
    if after.failed or after.errors:
        return f"{after.failed + after.errors} tests fail although the test command succeeded"
    if after.passed < before.passed + must_gain:
        return f"{after.passed} tests pass, {before.passed} did before"
    if after.skipped > before.skipped:
        return f"{after.skipped} tests are skipped, {before.skipped} were before"
    if after.count < before.count:
        return f"{after.count} tests ran, {before.count} did before"
    return ""


def _named(names: list[str]) -> str:
    shown = ", ".join(re.sub(r"\s+", " ", name)[:200] for name in names[:MAX_NAMED])
    return shown + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
