"""Runs a project's tests in the sandbox and says what failed. The repository is not written to."""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from pathlib import Path

from kcode.tools.testing import calls, compiled_results, plain_results, pytest_results, tap_results, text_results
from kcode.tools.testing.detect import LONGEST_TEST_S, OBSERVER, NoPlan, TestPlan, Wanted, find_plan
from kcode.tools.testing.report import MAX_SHOWN, FailingTest, Frame, Results, TestReport
from kcode.tools.truncate import plain
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import ExecResult, OnOutput, Sandbox

MAX_LOG_BYTES = 4 << 20
MAX_REPORT_BYTES = 16 << 20
TAIL_CHARS = 2000
PYTEST_USAGE_ERROR = 4
# The line in which a program says why it gave up.
ERROR_LINE = re.compile(r"(?:E\s+)?(?:[\w.]+\.)?\w*(?:Error|Exception|Warning)\b.*:|(?:ERROR|error|fatal)\b")
MAX_SAID_CHARS = 300
FOLDER = Path(__file__).parent


async def run_project_tests(
    sandbox: Sandbox,
    target: str | None,
    timeout_s: float,
    pattern: str = "",
    on_output: OnOutput | None = None,
    *,
    calls_wanted: bool = False,
    longest_test_s: float = LONGEST_TEST_S,
) -> TestReport:
    """Find the project's test command and run it, or the part of it that `target` (path or test id) and `pattern` select.

    With `calls_wanted` the report says what each test called, where that can be known. A Python test that takes `longest_test_s`
    of processor time is stopped and has failed.
    What cannot be run is a report with a `problem`, never an exception; FileError and SandboxDiedError may travel.
    """
    wanted = Wanted(
        (target or "").strip(), pattern.strip(), f"/tmp/kcode-tests-{secrets.token_hex(4)}", calls_wanted, longest_test_s
    )
    plan = await find_plan(sandbox, wanted)
    if isinstance(plan, NoPlan):
        return TestReport("", problem=plan.problem)
    await prepare(sandbox, plan, wanted)
    try:
        result = await execute(sandbox, plan, timeout_s, on_output)
    except FileError as error:
        if error.code not in {"ENOENT", "EACCES"}:
            raise
        return TestReport(plan.shown, problem=f"{plan.argv[0]} is not installed where the sandbox can see it.")
    if plan.framework == "pytest" and result.exit_code == PYTEST_USAGE_ERROR and b"unrecognized arguments" in result.output:
        # The project's addopts name plugins that are not installed; the tests themselves may well run.
        bare = TestPlan(plan.framework, (*plan.argv, "-o", "addopts="), plan.shown, plan.environment, plan.report)
        result = await execute(sandbox, bare, timeout_s, on_output)
    log = plain(result.output.decode(errors="replace"))
    log_path = f"{wanted.scratch}/output.txt"
    await sandbox.write(log_path, log.encode())
    found = await read_results(sandbox, plan, log)
    if found is not None:
        found = replace(found, failing=await with_sources(sandbox, found.failing))
    report = make_report(plan, result, found, log, log_path, timeout_s)
    return replace(report, calls=calls.parse(await read_report(sandbox, wanted.calls_path))) if calls_wanted else report


async def prepare(sandbox: Sandbox, plan: TestPlan, wanted: Wanted) -> None:
    """Put what the tests run with into the scratch folder."""
    await sandbox.write(f"{wanted.scratch}/output.txt", b"")
    if plan.framework in {"pytest", "plain"}:
        await sandbox.write(f"{wanted.plugins}/{OBSERVER}", (FOLDER / "observer.py").read_bytes())
    if plan.framework == "plain":
        await sandbox.write(f"{wanted.plugins}/plain_runner.py", (FOLDER / "plain_runner.py").read_bytes())


async def with_sources(sandbox: Sandbox, failing: tuple[FailingTest, ...]) -> tuple[FailingTest, ...]:
    """The first failing tests with the source lines of their frames, where the test program did not print them."""
    lines: dict[str, list[str]] = {}
    complete: list[FailingTest] = []
    for test in failing[:MAX_SHOWN]:
        frames: list[Frame] = []
        for frame in test.frames:
            if not frame.source and frame.path not in lines:
                lines[frame.path] = (await read_report(sandbox, frame.path)).split("\n")
            known = lines.get(frame.path, [])
            source = known[frame.line - 1].strip() if not frame.source and frame.line <= len(known) else frame.source
            frames.append(replace(frame, source=source))
        complete.append(replace(test, frames=tuple(frames)))
    return (*complete, *failing[MAX_SHOWN:])


async def execute(sandbox: Sandbox, plan: TestPlan, timeout_s: float, on_output: OnOutput | None) -> ExecResult:
    return await sandbox.exec(
        plan.argv, timeout_s=timeout_s, environment=plan.environment, max_output=MAX_LOG_BYTES, on_output=on_output
    )


async def read_results(sandbox: Sandbox, plan: TestPlan, log: str) -> Results | None:
    """What the run's own report says, else what its output says; None when neither says anything."""
    workspace = str(sandbox.policy.workspace)
    report = await read_report(sandbox, plan.report) if plan.report else ""
    match plan.framework:
        case "pytest":
            return pytest_results.parse(report, log) or (pytest_results.counted(log) if "::" in log else None)
        case "plain":
            return plain_results.parse(report)
        case "node":
            return tap_results.parse(log, workspace)
        case "go":
            return compiled_results.parse_go(log)
        case "cargo":
            return compiled_results.parse_cargo(log)
        case "text":
            return text_results.parse(log, workspace)


async def read_report(sandbox: Sandbox, path: str) -> str:
    """ "" when the run did not get as far as writing it."""
    try:
        return (await sandbox.read(path, max_bytes=MAX_REPORT_BYTES)).data.decode(errors="replace")
    except FileError as error:
        if error.code == "ENOENT":
            return ""
        raise


def make_report(
    plan: TestPlan, result: ExecResult, found: Results | None, log: str, log_path: str, timeout_s: float
) -> TestReport:
    results = found or Results()
    problem = ""
    if result.timed_out:
        problem = f"The tests were stopped after {timeout_s:.0f} s" + (f", during {results.running}." if results.running else ".")
    elif found is not None and results.running:
        problem = f"The run ended (exit code {result.exit_code}) during {results.running}."
    elif found is None or (results.count == 0 and not results.failing):
        problem = trouble(plan, result, log)
    elif result.exit_code and not results.failed and not results.errors and plan.framework not in {"plain"}:
        problem = f"No test failed, yet the command ended with exit code {result.exit_code}."
    return TestReport(
        command=plan.shown,
        passed=results.passed,
        failed=results.failed,
        errors=results.errors,
        skipped=results.skipped,
        failing=results.failing,
        problem=problem,
        log=log_path,
        duration_s=result.duration_s,
        output_tail=log.strip()[-TAIL_CHARS:] if problem and not results.failing else "",
    )


def trouble(plan: TestPlan, result: ExecResult, log: str) -> str:
    """Why there are no results."""
    if result.exit_code in {126, 127} or (result.exit_code != 0 and "command not found" in log):
        return f"{plan.argv[0]} cannot be run inside the sandbox (exit code {result.exit_code})."
    if plan.framework == "text":
        outcome = "succeeded" if result.exit_code == 0 else f"ended with exit code {result.exit_code}"
        return f"The command {outcome}; kcode does not know the format of its output."
    lines = [line.strip() for line in log.split("\n") if line.strip()]
    telling = [line for line in lines if ERROR_LINE.match(line)] or lines
    said = f": {telling[-1][:MAX_SAID_CHARS]}" if telling and result.exit_code else "."
    return f"No tests ran (exit code {result.exit_code}){said}"
