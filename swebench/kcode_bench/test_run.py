"""Run one generated test file inside the sandbox and count: the judge of a bug and of its fix."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from kcode.errors import SandboxFailed, SandboxUnavailable
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.errors import SandboxDiedError, SandboxUnavailableError
from kcode_sandbox.policy import Limits, Policy, Profile

MAX_OUTPUT_BYTES = 64 << 10
LIMITS = Limits(processes=64, memory_bytes=1 << 30, file_bytes=64 << 20)
SUMMARY = re.compile(r"^Ran (\d+) tests? in", re.MULTILINE)
FAILURES = re.compile(r"^FAILED \(([^)]*)\)\s*\Z", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a run of `expected` tests said. A run that did not report all of them passed none."""

    __test__ = False

    expected: int
    failed: int
    timed_out: bool
    output: str

    @property
    def passed(self) -> int:
        return self.expected - self.failed

    @property
    def ok(self) -> bool:
        return self.expected > 0 and self.failed == 0 and not self.timed_out


def read_outcome(exit_code: int | None, output: str, expected: int) -> TestRun:
    """`exit_code` None: ended for time. Exit code 0 alone proves nothing: a module may end the process while it is imported."""
    summary = SUMMARY.search(output)
    if exit_code is None or summary is None or int(summary[1]) != expected:
        return TestRun(expected, expected, exit_code is None, output)
    failures = FAILURES.search(output)
    failed = sum(int(part.partition("=")[2]) for part in failures[1].split(", ")) if failures else 0
    if (exit_code == 0) != (failed == 0):
        failed = expected
    return TestRun(expected, failed, False, output)


def run_tests(folder: Path, module: str, expected: int, time_limit_s: float, profile: Profile = "workspace-write") -> TestRun:
    """Run `test_<module>.py` in `folder` with unittest, behind the walls of `profile`; nothing survives it.

    The module under test was written by a model. Raises SandboxUnavailable or SandboxFailed.
    """
    # The interpreter below a virtual environment: inside the walls only that one is sure to be seen.
    argv = [os.path.realpath(sys.executable), "-B", "-m", "unittest", f"test_{module}"]
    try:
        return asyncio.run(_run_tests(Policy(folder.resolve(), profile, limits=LIMITS), argv, expected, time_limit_s))
    except SandboxUnavailableError as error:
        raise SandboxUnavailable(str(error)) from error
    except SandboxDiedError as error:
        raise SandboxFailed(f"while judging test_{module}.py: {error}") from error


async def _run_tests(policy: Policy, argv: list[str], expected: int, time_limit_s: float) -> TestRun:
    sandbox = open_sandbox(policy)
    await sandbox.start()
    try:
        result = await sandbox.exec(argv, timeout_s=time_limit_s, separate_stderr=True, max_output=MAX_OUTPUT_BYTES)
    finally:
        await sandbox.close()
    return read_outcome(None if result.timed_out else result.exit_code, result.stderr.decode(errors="replace"), expected)
