"""kcode on one bug: make the repository, run kcode headless in it, judge the module it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from kcode.errors import StartError
from kcode_bench.bug_set import Bug, run_project, write_repository
from kcode_bench.test_run import TestRun
from kcode_sandbox.policy import Profile

JUDGE_LIMIT_S = 20.0
GRACE_S = 45.0
MAX_MODULE_BYTES = 1 << 20
SCORED_EXIT_CODES = {0, 3}
START_EXIT_CODE = 1


@dataclass(frozen=True, slots=True)
class Terms:
    """What kcode is given for one bug, and what counts. None leaves the choice to kcode.

    A fix found later than in attempt `max_attempts` does not count; how many are made is the profile's own choice, unless `whole`
    is above 1: then up to so many whole attempts are made, each in a copy with a seed of its own, and those are counted.
    """

    kcode: tuple[str, ...]
    model: str | None
    base_url: str | None
    seed: int | None
    sandbox: Profile
    max_attempts: int
    time_limit_s: float
    """Of each whole attempt."""
    whole: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """One line of results.jsonl. "done" is final; an "error" is nobody's answer and is tried again by the next run.

    `model` is what kcode said it used, `requested_model` what it was asked for; `seconds` are kcode's own, from start to exit.
    """

    id: str
    split: str
    kind: str
    outcome: Literal["done", "error"]
    resolved: bool
    status: str
    exit_code: int
    attempts: int
    seconds: float
    turns: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tests_failed: int
    tests: int
    model: str
    requested_model: str
    commit: str
    reason: str

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


class ReportedUsage(BaseModel):
    prompt: int = Field(0, validation_alias=AliasChoices("prompt_tokens", "prompt", "input_tokens"))
    cached: int = Field(0, validation_alias=AliasChoices("cached_tokens", "cached", "cache_read_input_tokens"))
    completion: int = Field(0, validation_alias=AliasChoices("completion_tokens", "completion", "output_tokens"))


class Report(BaseModel):
    """What is read of the document that `kcode -p --output-format json` prints."""

    status: str
    attempts: int = 1
    turns: int = 0
    model: str | None = None
    reason: str | None = None
    usage: ReportedUsage = Field(default_factory=lambda: ReportedUsage.model_validate({}))


def task_text(bug: Bug) -> str:
    return f"test_{bug.problem.entry_point}.py fails; fix the bug in this repository"


def command_line(terms: Terms, bug: Bug, repository: Path, session: Path) -> list[str]:
    options = ["-p", task_text(bug), "--output-format", "json", "--cd", str(repository), "--output-dir", str(session)]
    options += ["--time-limit", f"{terms.time_limit_s:g}"]
    chosen = {"--model": terms.model, "--base-url": terms.base_url, "--sandbox": terms.sandbox}
    chosen["--seed"] = None if terms.seed is None else str(terms.seed)
    chosen["--attempts"] = None if terms.whole == 1 else str(terms.whole)
    return [*terms.kcode, *options, *(part for name, value in chosen.items() if value is not None for part in (name, value))]


def run_kcode(terms: Terms, argv: list[str], folder: Path) -> int | None:
    """Exit code, or None when it had to be killed. stdout goes to kcode.json and stderr to kcode.log in `folder`."""
    with (folder / "kcode.json").open("wb") as stdout, (folder / "kcode.log").open("wb") as stderr:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            return process.wait((terms.time_limit_s + GRACE_S) * terms.whole)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the child's session survives: asked first, so that a transcript is complete, then killed."""
    for number, wait_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
            process.wait(wait_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def end_group_of(group: int) -> None:
    """Kill what is left of a process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def read_report(folder: Path) -> Report | None:
    text = (folder / "kcode.json").read_text(encoding="utf-8", errors="replace")
    try:
        return Report.model_validate_json(text)
    except ValidationError:
        return None


def last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def judge(bug: Bug, repository: Path, profile: Profile = "workspace-write") -> TestRun:
    """The original tests against the module as it is now, in a fresh folder: edits of tests and stray files do not count."""
    module = repository / f"{bug.problem.entry_point}.py"
    if not module.is_file() or module.is_symlink() or module.stat().st_size > MAX_MODULE_BYTES:
        return TestRun(
            bug.entry.failed + bug.entry.passed,
            bug.entry.failed + bug.entry.passed,
            False,
            f"{module.name} is gone or no plain file",
        )
    return run_project(bug.problem, module.read_text(encoding="utf-8", errors="replace"), JUDGE_LIMIT_S, profile)


def solve(bug: Bug, terms: Terms, folder: Path, commit: str) -> Result:
    """Run one bug; what it leaves (repository, transcript, logs) is put into `folder`, replacing an earlier try.

    The repository lies under the system's temporary folder while kcode works, so that neither the results beside it nor a
    pytest configuration of a folder above can reach it. Raises StartError when kcode could not start.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="kcode-bug-", ignore_cleanup_errors=True) as place:
        repository = Path(place, bug.problem.entry_point)
        write_repository(repository, bug)
        started = time.monotonic()
        exit_code = run_kcode(terms, command_line(terms, bug, repository, folder / "session"), folder)
        seconds = time.monotonic() - started
        if exit_code == START_EXIT_CODE:
            raise StartError(f"kcode could not start: {last_line(folder / 'kcode.log') or f'see {folder}/kcode.log'}")
        tests = judge(bug, repository, terms.sandbox)
        shutil.copytree(repository, folder / "repository", symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".git"))
    (folder / "tests.log").write_text(tests.output, encoding="utf-8")
    report = read_report(folder)
    scored = exit_code is None or (exit_code in SCORED_EXIT_CODES and report is not None)
    usage = report.usage if report else ReportedUsage.model_validate({})
    attempts = report.attempts if report else 1
    return Result(
        id=bug.entry.id,
        split=bug.entry.split,
        kind=bug.entry.kind,
        outcome="done" if scored else "error",
        resolved=scored and tests.ok and attempts <= terms.max_attempts,
        status="killed" if exit_code is None else report.status if report else "no report",
        exit_code=-1 if exit_code is None else exit_code,
        attempts=attempts,
        seconds=round(seconds, 2),
        turns=report.turns if report else 0,
        prompt_tokens=usage.prompt,
        cached_tokens=usage.cached,
        completion_tokens=usage.completion,
        tests_failed=tests.failed,
        tests=tests.expected,
        model=(report.model if report else None) or terms.model or "default",
        requested_model=terms.model or "default",
        commit=commit,
        reason=(report.reason if report else None) or last_line(folder / "kcode.log"),
    )
