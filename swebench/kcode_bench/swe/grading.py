"""When an instance counts as resolved: the official rules over a test run's log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from kcode_bench.swe.log_parsers import Statuses, parser_named
from kcode_bench.swe.rows import Row

Apply = Literal["applied", "failed", "empty"]
PASSING = {"PASSED", "XFAIL"}
# No report of the official harness exists after these: it counts them as errors.
APPLY_FAILED = "patch_apply_failed"
TIMED_OUT = "tests_ended_for_time"
BAD_CODES = (">>>>> Patch Apply Failed", ">>>>> Reset Failed", ">>>>> Tests Errored", ">>>>> Tests Timed Out")
# Evidence that a runner which reports failures only ran at all; every count must be above zero.
SUITE_RAN = re.compile(
    r"Executed [1-9]\d* of \d+|TOTAL: [1-9]\d* (?:SUCCESS|FAILED)|[1-9]\d* passing|Tests:\s+[1-9]\d*|^# tests [1-9]\d*"
    r"|Test Suites:\s+(?:\d+ \w+, )*[1-9]\d* total|[1-9]\d* specs?, \d+ failures?|': ok$",
    re.MULTILINE,
)
# (reason, whether it is surely the environment's fault, sign); the first that is found counts.
SIGNS = tuple(
    (reason, sure, re.compile(pattern, re.MULTILINE))
    for reason, sure, pattern in (
        ("browser_launch_failed", True, r"Failed to launch|Failed to connect to the bus"),
        ("display_unavailable", True, r"cannot open display|Missing X server|unable to open X display"),
        ("out_of_memory", True, r"Cannot allocate memory|OutOfMemoryError|^Killed$"),
        ("container_unavailable", True, r"Error response from daemon|Cannot connect to the Docker daemon"),
        ("network_unreachable", True, r"Could not resolve host|Temporary failure in name resolution"),
        ("missing_module", False, r"Cannot find module|MODULE_NOT_FOUND|ModuleNotFoundError"),
        ("no_tests_collected", False, r"no tests ran|collected 0 items"),
        ("tests_timed_out", False, r"Timeout error: \d+ seconds exceeded"),
    )
)


@dataclass(frozen=True, slots=True)
class TestLog:
    """One run of an instance's tests. `output` is what the test command alone wrote; `exit_code` None: ended for time."""

    __test__ = False

    apply: Apply
    output: str
    exit_code: int | None
    text: str
    """The whole log, in the form of the official test_output.txt."""


@dataclass(frozen=True, slots=True)
class Tests:
    """Which of the named tests did what they should, each list in the order of the row."""

    __test__ = False

    f2p_success: tuple[str, ...]
    f2p_failure: tuple[str, ...]
    p2p_success: tuple[str, ...]
    p2p_failure: tuple[str, ...]

    @property
    def resolved(self) -> bool:
        return not self.f2p_failure and not self.p2p_failure

    def document(self) -> dict[str, dict[str, list[str]]]:
        nothing: dict[str, list[str]] = {"success": [], "failure": []}
        return {
            "FAIL_TO_PASS": {"success": list(self.f2p_success), "failure": list(self.f2p_failure)},
            "PASS_TO_PASS": {"success": list(self.p2p_success), "failure": list(self.p2p_failure)},
            "FAIL_TO_FAIL": dict(nothing),
            "PASS_TO_FAIL": dict(nothing),
        }


@dataclass(frozen=True, slots=True)
class Grade:
    """`tests` is None where the log cannot be graded; `reason` then says why, in the official words where there are some.

    `sign` is what the official harness would call the likely cause, if anything.
    """

    resolved: bool
    tests: Tests | None
    reason: str = ""
    sign: str = ""
    is_environment: bool = False

    def document(self, instance_id: str, *, patch_exists: bool) -> dict[str, object]:
        """The instance's report.json."""
        report: dict[str, object] = {
            "patch_is_None": not patch_exists,
            "patch_exists": patch_exists,
            "patch_successfully_applied": self.tests is not None,
            "resolved": self.resolved,
            "infra_failure": self.is_environment,
        }
        if self.sign:
            report["infra_failure_reason"] = self.sign
        if self.tests is not None:
            report["tests_status"] = self.tests.document()
        return {instance_id: report}


def grade(row: Row, parser: str, log: TestLog) -> Grade:
    """The verdict on one run."""
    if log.apply == "failed":
        return _ungraded(log, APPLY_FAILED)
    if log.exit_code is None:
        return _ungraded(log, TIMED_OUT)
    if any(code in log.text for code in BAD_CODES):
        return _ungraded(log, "bad_code_in_log")
    parse = parser_named(parser)
    statuses = parse(log.output) or parse(log.text)
    if not statuses and not SUITE_RAN.search(log.text):
        return _ungraded(log, "")
    if log.exit_code != 0 and statuses and not {"FAILED", "ERROR"} & set(statuses.values()):
        # Lines that a patch printed itself, or a run that broke off: the log does not describe what happened.
        return _ungraded(log, "")
    tests = judge(row, statuses)
    return Grade(tests.resolved, tests)


def _ungraded(log: TestLog, reason: str) -> Grade:
    """`reason` "": the likely cause, or else how the run ended."""
    sign, sure = classify(log.text)
    ending = "no_test_results" if log.exit_code == 0 else "exit_code_without_failure"
    return Grade(False, None, reason or sign or ending, sign, sure)


def judge(row: Row, statuses: Statuses) -> Tests:
    """Sort the named tests. One that was not seen failed, unless the row's runner reports failures only."""

    def wanted(name: str, *, may_skip: bool) -> bool:
        if row.eval_type == "fail_only":
            return statuses.get(name) != "FAILED"
        status = find_status(name, statuses)
        return status in PASSING or (may_skip and status == "SKIPPED")

    f2p = {name: wanted(name, may_skip=False) for name in row.FAIL_TO_PASS}
    p2p = {name: wanted(name, may_skip=True) for name in row.PASS_TO_PASS}
    return Tests(
        tuple(name for name in row.FAIL_TO_PASS if f2p[name]),
        tuple(name for name in row.FAIL_TO_PASS if not f2p[name]),
        tuple(name for name in row.PASS_TO_PASS if p2p[name]),
        tuple(name for name in row.PASS_TO_PASS if not p2p[name]),
    )


def find_status(name: str, statuses: Statuses) -> str | None:
    """By its name; one that was cut within its parameters stands for all that begin so, if these agree on passing."""
    if name in statuses:
        return statuses[name]
    if name.count("[") > name.count("]"):
        found = [status for other, status in statuses.items() if other.startswith(name)]
        if found and len({status in PASSING for status in found}) == 1:
            return found[0]
    return None


def classify(text: str) -> tuple[str, bool]:
    """A likely reason why there are no results, "" for none, and whether it is surely the environment."""
    return next(((reason, sure) for reason, sure, sign in SIGNS if sign.search(text)), ("", False))
