"""Trying something on the project: the tests before and after, and the way back."""

from __future__ import annotations

import ast
import builtins

from kcode.steps import Steps
from kcode.tools.rewrite_function import RewriteFunctionTool
from kcode.tools.run_tests import RunTestsTool
from kcode.tools.testing.report import TestReport

FIRST_TIMEOUT_S = 300
MIN_TIMEOUT_S = 20
SHOWN_CHARS = 1200


async def run_tests(
    steps: Steps, timeout_s: int, target: str = "", *, recorded: bool = False, calls_wanted: bool = False
) -> TestReport | None:
    """Run the project's tests, or `target` of them; None when they were not run. The model hears of it when it is `recorded`."""
    tool = tests_tool(steps)
    if tool is None:
        return None
    tool.last_report = None
    tool.calls_wanted = calls_wanted
    call = steps.run if recorded else steps.probe
    await call("run_tests", {"timeout_s": timeout_s} | ({"target": target} if target else {}))
    return tool.last_report


def last_report(steps: Steps) -> TestReport | None:
    """What the last run of the tests found."""
    tool = tests_tool(steps)
    return tool.last_report if tool is not None else None


def tests_tool(steps: Steps) -> RunTestsTool | None:
    """None when the profile has no such tool."""
    return next((tool for tool in steps.tools if isinstance(tool, RunTestsTool)), None)


def timeout_after(before: TestReport | None) -> int:
    """How long the tests may take in seconds, by how long they took."""
    return FIRST_TIMEOUT_S if before is None else max(MIN_TIMEOUT_S, int(before.duration_s * 3) + 10)


def is_failing(report: TestReport | None) -> bool:
    """Whether tests ran and some failed; a run that found no tests says nothing."""
    return report is not None and not report.ok and bool(report.failing or report.failed or report.errors)


def can_judge(before: TestReport | None) -> bool:
    """Whether the tests say anything about a change: some ran to their end."""
    return before is not None and bool(before.passed or is_failing(before)) and not before.problem


def worsening(before: TestReport, after: TestReport | None) -> str:
    """What is worse now than it was, for the model; "" when nothing is."""
    if after is None:
        return "the tests were not run"
    known = {test.id for test in before.failing}
    new = [test for test in after.failing if test.id not in known]
    more = after.failed + after.errors > before.failed + before.errors
    if new or more or after.passed < before.passed or (after.problem and not before.problem):
        return after.text(SHOWN_CHARS)
    return ""


def unknown_names(path: str, before: str, after: str) -> tuple[str, ...]:
    """Names that Python code newly uses and nothing defines; empty for other languages and where one cannot know."""
    if not path.endswith(".py"):
        return ()
    return tuple(sorted(undefined(after) - undefined(before)))


def undefined(source: str) -> set[str]:
    """Names loaded somewhere in a module and bound nowhere in it, in any scope: few, but certainly wrong."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):
        return set()
    used: set[str] = set()
    bound = {*dir(builtins), "__file__", "__name__", "__doc__", "__path__", "__spec__", "__package__", "__class__"}
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name):
                bound.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                if any(alias.name == "*" for alias in names):
                    return set()
                bound |= {alias.asname or alias.name.partition(".")[0] for alias in names}
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                bound.add(name)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                bound.add(name)
            case ast.MatchMapping(rest=str(name)):
                bound.add(name)
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                bound |= set(names)
            case _:
                continue
    return used - bound


async def clean(steps: Steps, snapshot: str) -> None:
    await steps.restore(snapshot)
    forget_reads(steps)


def forget_reads(steps: Steps) -> None:
    """The files are not those the tools last saw: the driver has just read them anew, or restored them itself."""
    for tool in steps.tools:
        if isinstance(tool, RewriteFunctionTool):
            tool.files.forget()
