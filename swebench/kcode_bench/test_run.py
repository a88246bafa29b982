"""Run one generated test file and count: the judge of a bug and of its fix."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MAX_OUTPUT_CHARS = 20_000
MEMORY_BYTES = 1 << 30
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


def limit_memory() -> None:
    """In the child: a runaway list ends in MemoryError instead of swapping the machine."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def read_outcome(exit_code: int | None, output: str, expected: int) -> TestRun:
    """`exit_code` None: ended for time. Exit code 0 alone proves nothing: a module may end the process while it is imported."""
    output = output[-MAX_OUTPUT_CHARS:]
    summary = SUMMARY.search(output)
    if exit_code is None or summary is None or int(summary[1]) != expected:
        return TestRun(expected, expected, exit_code is None, output)
    failures = FAILURES.search(output)
    failed = sum(int(part.partition("=")[2]) for part in failures[1].split(", ")) if failures else 0
    if (exit_code == 0) != (failed == 0):
        failed = expected
    return TestRun(expected, failed, False, output)


def run_tests(folder: Path, module: str, expected: int, time_limit_s: float) -> TestRun:
    """Run `test_<module>.py` in `folder` with unittest in a process group of its own; the group is gone on return."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "unittest", f"test_{module}"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=limit_memory,
    )
    try:
        _, output = process.communicate(timeout=time_limit_s)
        return read_outcome(process.returncode, output, expected)
    except subprocess.TimeoutExpired:
        return read_outcome(None, f"no result after {time_limit_s:g} s", expected)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.poll()
        process.communicate()
