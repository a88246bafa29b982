"""Watches Python tests from within: which of the project's functions each test calls, and that no test runs for ever.

This file is copied into the sandbox and run there by the project's own interpreter, as a plugin of pytest or by plain_runner.py:
standard library only, Python 3.8 and newer, no import of kcode. With KCODE_CALLS in the environment the calls go to that file,
as one JSON line per test. Functions are found by the interpreter's own profiler, which costs little and changes no result.
A test is stopped after KCODE_LONGEST_TEST_S seconds of processor time: what only waits is not, and a loaded machine makes no
test fail.
"""

from __future__ import annotations

import cProfile
import json
import os
import signal
import sys
import threading
from types import CodeType, FrameType
from typing import Protocol

ROOT = os.path.realpath(os.getcwd())
LIBRARIES = ("site-packages", "node_modules", ".venv", "venv", ".tox")
# When one test has run for ever, others will: they get less.
LATER_TESTS_S = 5.0


class Report(Protocol):
    """The part of pytest's report of a phase of a test that is read here."""

    @property
    def failed(self) -> bool: ...

    @property
    def skipped(self) -> bool: ...


class RunsForEver(BaseException):
    """Not an Exception: the loop that does not end may catch those."""


class Observer:
    """One test at a time: `begin`, its `outcome`, `end`."""

    def __init__(self, path: str, longest_s: float) -> None:
        self._path = path
        self._profile: cProfile.Profile | None = None
        self._longest_s = longest_s
        self._places: dict[str, str | None] = {}
        self._can_stop = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
        self.outcome = ""

    def begin(self) -> None:
        self.outcome = ""
        if self._can_stop:
            signal.signal(signal.SIGVTALRM, self._too_long)
            signal.setitimer(signal.ITIMER_VIRTUAL, self._longest_s)
        if not self._path or sys.getprofile() is not None:
            return
        self._profile = cProfile.Profile(builtins=False)
        try:
            self._profile.enable()
        except ValueError:
            self._profile = None  # another tool is profiling

    def end(self, test: str) -> None:
        """The calls are kept under the id of the test; for "" they are not."""
        if self._can_stop:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if self._profile is None:
            return
        self._profile.disable()
        called = {place for entry in self._profile.getstats() if (place := self._place(entry.code)) is not None}
        self._profile = None
        if not test:
            return
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"test": test, "outcome": self.outcome, "calls": sorted(called)}) + "\n")

    def _place(self, code: CodeType | str) -> tuple[str, int] | None:
        """The path below the project and the first line of a function; None for those of libraries, and for what is none."""
        if isinstance(code, str) or code.co_name == "<module>":
            return None
        name = code.co_filename
        if name not in self._places:
            full = os.path.realpath(name)
            inside = full.startswith(ROOT + os.sep) and not any(f"{os.sep}{part}{os.sep}" in full for part in LIBRARIES)
            self._places[name] = os.path.relpath(full, ROOT) if inside and not name.startswith("<") else None
        path = self._places[name]
        return None if path is None else (path, code.co_firstlineno)

    def _too_long(self, number: int, frame: FrameType | None) -> None:
        seconds, self._longest_s = self._longest_s, min(self._longest_s, LATER_TESTS_S)
        raise RunsForEver(f"the test was stopped after {seconds:.0f} s of processor time; it probably never ends")


observer = Observer(os.environ.get("KCODE_CALLS", ""), float(os.environ["KCODE_LONGEST_TEST_S"]))


def pytest_runtest_logstart(nodeid: str) -> None:
    observer.begin()


def pytest_runtest_logreport(report: Report) -> None:
    observer.outcome = "failed" if report.failed else observer.outcome or ("skipped" if report.skipped else "")


def pytest_runtest_logfinish(nodeid: str) -> None:
    observer.outcome = observer.outcome or "passed"
    observer.end(nodeid)
