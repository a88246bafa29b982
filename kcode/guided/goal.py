"""What a turn about failing tests has to reach: those it is about pass, and no test fails that passed before."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kcode.repomap import TEST_PATH
from kcode.tools.testing.report import FailingTest, TestReport

NAMED = re.compile(r"[\w./-]+\.\w+(?:::[\w.:-]+(?:\[[^\]\s]*\])?)?")
BROKEN_FILE = re.compile(r'File "([^"]+)", line \d+[^"]*\n(?:\w+\.)*(?:SyntaxError|IndentationError|TabError)\b')
MISSING = re.compile(
    r"ModuleNotFoundError: No module named '([\w.]+)'|PackageNotFoundError: (?:No package metadata was found for )?([\w.-]+)"
    r"|Cannot find (?:module|package) '((?:@[\w.-]+/)?[\w-][\w.-]*)"
)
# A whole run below this is not worth a smaller one before it.
LONG_RUN_S = 4.0


@dataclass(frozen=True, slots=True)
class Goal:
    """`wanted` must pass. `known` are ids of other tests that failed before; None when only a part of the tests was run.

    `target` selects the wanted tests for run_tests, and hardly any others; "" when one target cannot. Of tests that are no part
    of the project `is_extra` is true: a whole run leaves them out, and `unrun` is why one said nothing of the tree as it was.
    """

    before: TestReport
    wanted: tuple[FailingTest, ...]
    known: frozenset[str] | None
    target: str
    is_extra: bool = False
    unrun: str = ""

    @property
    def essential(self) -> TestReport:
        """The run before with the wanted failures alone."""
        return replace(self.before, failing=self.wanted)

    @property
    def quick(self) -> str:
        """What to run before everything else is run, since it takes so much less; "" for nothing."""
        return self.target if self.is_extra or self.known is None or self.before.duration_s > LONG_RUN_S else ""

    def refused_by(self, report: TestReport) -> bool:
        """Whether a run of `quick` shows that a repair is wrong; it cannot show that one is right."""
        others = ids(self.before.failing) - ids(self.wanted)
        return not report.passed or bool(ids(report.failing) - others) or (not report.failing and not report.ok)

    def broken(self, report: TestReport) -> list[str]:
        """Ids that fail in a whole run, are not wanted, and are not known to have failed before."""
        wanted = ids(self.wanted)
        return sorted(ids(report.failing) - wanted - (self.known or frozenset()))

    def met(self, report: TestReport) -> bool:
        """Whether a whole run shows that the goal is reached; of extra tests `quick` has shown that they pass."""
        if report.ok:
            return True
        if self.is_extra:
            return not self.broken(report) and (not report.problem or bool(self.unrun))
        if report.problem or not report.passed or not report.failing or ids(report.failing) & ids(self.wanted):
            return False
        return not self.broken(report)

    def knowing(self, clean: TestReport) -> Goal:
        """The goal after a whole run on the tree without any repair."""
        return replace(self, known=ids(clean.failing) - ids(self.wanted), unrun=clean.problem)

    def is_unclear(self, report: TestReport) -> bool:
        """Whether a whole run says something bad that may have been so before."""
        return self.known is None and bool(self.broken(report) or (self.is_extra and report.problem))


def ids(tests: Iterable[FailingTest]) -> frozenset[str]:
    return frozenset(test.id for test in tests)


def named_target(task: str) -> str:
    """The one test file or test id that the task names; "" when it names none or several."""
    found = {name.rstrip(".:") for name in NAMED.findall(task) if TEST_PATH.search(name.partition("::")[0])}
    return found.pop() if len(found) == 1 else ""


def choose(task: str, report: TestReport, target: str) -> Goal:
    """The goal of `task`, given a run with failing tests: of everything, or of the `target` that the task names."""
    reached = reaching(report)
    if target:
        return Goal(report, reached, None, target)
    wanted = mentioned(task, report.failing) or reached
    return Goal(report, wanted, ids(report.failing) - ids(wanted), common_target(wanted))


def reaching(report: TestReport) -> tuple[FailingTest, ...]:
    """The failing tests that call something of the project, or all when that is not known or none does.

    What others fail by, say a fixture that is not installed or a mistake in the test file's own syntax, no change of the code
    repairs.
    """
    idle = {test.test for test in report.calls if all(TEST_PATH.search(path) for path, _ in test.places)}
    found = tuple(test for test in report.failing if test.id not in idle and not is_broken_itself(test))
    return found or report.failing


def missing_packages(report: TestReport, own: Iterable[str]) -> tuple[str, ...]:
    """What has to be installed before any failing test can say something of the code; empty when one of them does already.

    `own` are the paths of the project's files: that one of its modules is not found is a mistake in the code.
    """
    modules = {part.removesuffix(".py") for path in own for part in path.split("/")}
    found: dict[str, None] = {}
    for test in report.failing:
        missing = MISSING.search(test.message)
        module = missing[1].partition(".")[0] if missing is not None and missing[1] else ""
        if missing is None or module in modules:
            return ()
        found[module or missing[2] or missing[3]] = None
    return tuple(found)


def is_broken_itself(test: FailingTest) -> bool:
    """Whether the test's own file is no valid Python."""
    wrong = BROKEN_FILE.search(test.message)
    return wrong is not None and module_of(wrong[1]) == module_of(test.id.partition("::")[0])


def module_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".py")


def mentioned(task: str, failing: Sequence[FailingTest]) -> tuple[FailingTest, ...]:
    """The failing tests whose id, file or name stands in the task."""
    names = set(re.findall(r"[\w./-]+", task))
    return tuple(test for test in failing if test.id in task or names & {*re.split(r"::|\[", test.id)[:4], file_name(test.id)})


def file_name(test_id: str) -> str:
    return test_id.partition("::")[0].rpartition("/")[2]


def common_target(tests: Sequence[FailingTest]) -> str:
    """The id of a single Python test, or the file that all of them are in."""
    if len(tests) == 1 and "::" in tests[0].id:
        return tests[0].id
    files = {test.id.partition("::")[0] for test in tests}
    file = files.pop() if len(files) == 1 else ""
    return file if file.endswith(".py") else ""
