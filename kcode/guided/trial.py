"""Trying something on the project: the tests before and after, and the way back."""

from __future__ import annotations

import ast
import builtins
import symtable

from kcode.steps import Steps
from kcode.tools.rewrite_function import RewriteFunctionTool
from kcode.tools.run_tests import RunTestsTool
from kcode.tools.testing.report import TestReport
from kcode.turn import Called

FIRST_TIMEOUT_S = 300
MIN_TIMEOUT_S = 20
SHOWN_CHARS = 1200
MODULE_NAMES = ("__file__", "__name__", "__doc__", "__path__", "__spec__", "__package__")


class Refused(Exception):
    """The person, or a rule, did not let a call run: no other call takes its place. The message is the reason."""


def accepted(called: Called) -> Called:
    """The call, which ran. Raises Refused."""
    if called.is_refused:
        raise Refused(called.result.text)
    return called


async def run_tests(
    steps: Steps, timeout_s: int, target: str = "", *, recorded: bool = False, calls_wanted: bool = False
) -> TestReport | None:
    """Run the project's tests, or `target` of them; None when there is no such tool. The model hears of it when it is `recorded`.

    Raises Refused.
    """
    tool = tests_tool(steps)
    if tool is None:
        return None
    tool.last_report = None
    tool.calls_wanted = calls_wanted
    call = steps.run if recorded else steps.probe
    accepted(await call("run_tests", {"timeout_s": timeout_s} | ({"target": target} if target else {})))
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
    """Names that a scope of a module uses and neither it, nor one around it, nor the module defines: few, but certainly wrong."""
    try:
        imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        module = symtable.symtable(source, "code", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return set()
    if any(alias.name == "*" for node in imports for alias in node.names):
        return set()
    bound = {*dir(builtins), *MODULE_NAMES}
    used: set[str] = set()
    scopes = [module]
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        for symbol in scope.get_symbols():
            if symbol.is_global() or scope is module:
                is_bound = symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
                (bound if is_bound else used).add(symbol.get_name())
    # Private names of a class are mangled where they are used, and not where they are defined.
    return {name for name in used - bound if "__" not in name}


async def clean(steps: Steps, snapshot: str) -> None:
    await steps.restore(snapshot)
    forget_reads(steps)


def forget_reads(steps: Steps) -> None:
    """The files are not those the tools last saw: the driver has just read them anew, or restored them itself."""
    for tool in steps.tools:
        if isinstance(tool, RewriteFunctionTool):
            tool.files.forget()
