"""`run_tests`: the project's tests by its own command, and what is essential of each failure."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import TestsDisplay
from kcode.tools.bash import LiveText
from kcode.tools.refusal import settle
from kcode.tools.testing.report import TestReport
from kcode.tools.testing.run import run_project_tests
from kcode.tools.tool import Access, Emit, Outcome
from kcode_sandbox.sandbox import Sandbox

DEFAULT_TIMEOUT_S = 300
MAX_TIMEOUT_S = 1800


class RunTestsArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    target: str | None = Field(
        default=None,
        description='Test file, folder or test id, e.g. "tests/test_a.py::test_x"; all tests when left out.',
        max_length=1000,
    )
    pattern: str | None = Field(default=None, description="Only tests whose name contains this.", max_length=200)
    timeout_s: int = Field(default=DEFAULT_TIMEOUT_S, description="Stop them after so long.", ge=1, le=MAX_TIMEOUT_S)


class RunTestsTool:
    """`last_report` is what the last run found, for a driver that needs more than the text; `calls_wanted` asks for more yet."""

    name: str = "run_tests"
    access: Access = "execute"
    arguments: type[RunTestsArguments] = RunTestsArguments

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.last_report: TestReport | None = None
        self.calls_wanted = False

    def summary(self, arguments: RunTestsArguments) -> str:
        return " ".join(["run tests", *(part for part in (arguments.target, arguments.pattern) if part)])

    async def run(self, arguments: RunTestsArguments, emit: Emit) -> Outcome:
        return await settle(self.test(arguments, emit))

    async def test(self, arguments: RunTestsArguments, emit: Emit) -> Outcome:
        report = await run_project_tests(
            self.sandbox,
            arguments.target,
            float(arguments.timeout_s),
            arguments.pattern or "",
            LiveText(emit).feed,
            calls_wanted=self.calls_wanted,
        )
        self.last_report = report
        text = report.text()
        display = TestsDisplay(report.command, report.passed, report.failed + report.errors, text)
        return Outcome(text, display, is_error=bool(report.problem))
