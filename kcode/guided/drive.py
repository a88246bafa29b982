"""The driver of small models: kcode finds the failing tests and the suspects, the model supplies the repair, tests judge it.

A turn about failing tests goes: run the tests; choose suspects; try repairs one after another, the likeliest first, each from the
same clean tree; stop when the tests pass. Repairs come from the model's surprise (surprise.py) and from rewrites of a suspect
(rewrite.py). A turn without a failing test is an ordinary turn of the free loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from kcode.errors import EngineDied, ModelError
from kcode.guided import rewrite
from kcode.guided.goal import Goal, choose, named_target
from kcode.guided.surprise import Proposal, propose
from kcode.guided.suspects import Suspect, find_suspects, words_of
from kcode.loop import work
from kcode.model import TextModel, Usage
from kcode.repomap import load_sources
from kcode.steps import Ending, Steps
from kcode.tools.rewrite_function import RewriteFunctionTool
from kcode.tools.run_tests import RunTestsTool
from kcode.tools.testing.report import TestReport
from kcode_sandbox.sandbox import Sandbox

MAX_ATTEMPTS = 8
MAX_SUSPECTS = 3
REWRITES_PER_SUSPECT = 3
FIRST_TIMEOUT_S = 300
MIN_TIMEOUT_S = 20
RESAMPLES = 2
# A surprise worth a test run before anything else is tried, and how many of these a suspect gets.
CLEAR_GAIN = 1.0
CLEAR_PER_SUSPECT = 2
POOR_GAIN = -1.0


@dataclass(frozen=True, slots=True)
class Repair:
    """A new definition of the suspect; `why` is one line for the person."""

    suspect: Suspect
    code: str
    why: str


@dataclass(slots=True)
class Guided:
    """One turn of guided work in `sandbox`; `drive` is the Driver."""

    sandbox: Sandbox
    seed: int = 0
    attempts: int = 0

    async def drive(self, steps: Steps, text: str) -> Ending:
        self.attempts = 0
        goal = await self._goal(steps, text)
        if goal is None:
            return await work(steps, text)
        files = await load_sources(self.sandbox, words_of(text))
        self._forget_reads(steps)
        suspects = find_suspects(files, text, goal.wanted, MAX_SUSPECTS)
        if not suspects:
            steps.notice("info", "no function stands out as the cause; the model works freely")
            return await self._free(steps, text, goal)
        steps.notice("info", f"suspected: {', '.join(suspect.label for suspect in suspects)}")
        snapshot = await steps.snapshot()
        steps.say(rewrite.brief(text, goal.essential.text(rewrite.MAX_FAILING_CHARS), suspects))
        fixed: Ending | None = None
        try:
            async with aclosing(self._repairs(steps, suspects)) as repairs:
                asked = steps.step
                async for repair in repairs:
                    if steps.step == asked:
                        # The model read and was not asked: that is a step too, and the limit holds for it.
                        steps.spend(Usage(), as_step=True)
                    asked = steps.step
                    mark = steps.mark()
                    if await self._apply(steps, repair):
                        goal, after = await self._judge(steps, goal, snapshot)
                        if after is not None:
                            fixed = Ending("finished", "the tests pass", success(repair, goal, after), self.attempts)
                            return fixed
                    await self._clean(steps, snapshot)
                    steps.rewind(mark)
                    steps.take_steering()
        finally:
            # An interrupt or a limit may come while a repair is being tested: what no test has judged does not stay.
            if fixed is None:
                await self._clean(steps, snapshot)
        reason = f"{self.attempts} repairs were tried and none made the tests pass; the files are as they were"
        return Ending("limit", reason, f"Not fixed: {reason}. Still failing: {goal.before.counts}.", self.attempts)

    async def _goal(self, steps: Steps, text: str) -> Goal | None:
        """What must pass; None when no test fails. A test that the task names is run alone, before all of them are."""
        for target in (named_target(text), ""):
            report = await self._test(steps, FIRST_TIMEOUT_S, target)
            if report is None:
                return None
            if report.failing and not report.ok:
                return choose(text, report, target)
            if not target:
                return None
        return None

    async def _free(self, steps: Steps, text: str, goal: Goal) -> Ending:
        """The free loop on failing tests; they have the last word on whether it is finished."""
        ending = await work(steps, text)
        after = await self._test(steps, FIRST_TIMEOUT_S)
        if ending.status != "finished" or after is None or goal.met(after):
            return ending
        return Ending("limit", f"the model stopped, but tests still fail: {after.counts}", ending.result)

    async def _clean(self, steps: Steps, snapshot: str) -> None:
        await steps.restore(snapshot)
        self._forget_reads(steps)

    @staticmethod
    def _forget_reads(steps: Steps) -> None:
        """The files are not those the tools last saw: the driver has just read them anew, or restored them itself."""
        for tool in steps.tools:
            if isinstance(tool, RewriteFunctionTool):
                tool.files.forget()

    async def _apply(self, steps: Steps, repair: Repair) -> bool:
        arguments = {"path": repair.suspect.path, "name": repair.suspect.symbol.qualified, "code": repair.code}
        called = await steps.run("rewrite_function", arguments, text=repair.why)
        return not called.result.is_error

    async def _judge(self, steps: Steps, goal: Goal, clean: str) -> tuple[Goal, TestReport | None]:
        """Test the tree as it is; the report when the goal is met. The goal knows more when `clean` had to be tested as well."""
        self.attempts += 1
        timeout_s = FIRST_TIMEOUT_S if goal.known is None else max(MIN_TIMEOUT_S, int(goal.before.duration_s * 3) + 10)
        if goal.quick:
            report = await self._test(steps, timeout_s, goal.quick, recorded=True)
            if report is None or goal.refused_by(report):
                return goal, None
        report = await self._test(steps, timeout_s, recorded=True)
        if report is not None and goal.known is None and goal.broken(report):
            repaired = await steps.snapshot()
            await self._clean(steps, clean)
            first = await self._test(steps, timeout_s)
            await self._clean(steps, repaired)
            goal = goal if first is None else goal.knowing(first)
        return goal, report if report is not None and goal.met(report) else None

    async def _test(self, steps: Steps, timeout_s: int, target: str = "", *, recorded: bool = False) -> TestReport | None:
        """Run the project's tests, or `target` of them; None when the profile has no such tool."""
        tool = next((tool for tool in steps.tools if isinstance(tool, RunTestsTool)), None)
        if tool is None:
            return None
        call = steps.run if recorded else steps.probe
        await call("run_tests", {"timeout_s": timeout_s} | ({"target": target} if target else {}))
        return tool.last_report

    async def _repairs(self, steps: Steps, suspects: list[Suspect]) -> AsyncGenerator[Repair, None]:
        """Repairs to try, at most MAX_ATTEMPTS: each suspect's clear surprises, then rewrites and weaker surprises in turn.

        A suspect is read only when the clear repairs of those before it have failed: a test run costs less than reading.
        """
        tried = {rewrite.squeezed(suspect.code) for suspect in suspects}
        weaker: list[Proposal] = []
        made = 0
        for suspect in suspects:
            proposals = await self._proposals(steps, suspect)
            clear = [proposal for proposal in proposals[:CLEAR_PER_SUSPECT] if proposal.gain >= CLEAR_GAIN]
            weaker += proposals[len(clear) :]
            for proposal in clear[: MAX_ATTEMPTS - made]:
                made += 1
                yield as_repair(proposal, tried)
        weaker = sorted((proposal for proposal in weaker if proposal.gain >= POOR_GAIN), key=lambda proposal: -proposal.gain)
        rewrites = [(suspect, number) for number in range(REWRITES_PER_SUSPECT) for suspect in suspects]
        for turn in range(MAX_ATTEMPTS - made):
            repair = as_repair(weaker.pop(0), tried) if weaker and turn % 2 else None
            while repair is None and rewrites:
                repair = await self._rewrite(steps, *rewrites.pop(0), tried)
            if repair is None and weaker:
                repair = as_repair(weaker.pop(0), tried)
            if repair is None:
                return
            yield repair

    async def _proposals(self, steps: Steps, suspect: Suspect) -> list[Proposal]:
        """What surprises the model in the suspect, best first; nothing for models that cannot say."""
        if not isinstance(steps.model, TextModel):
            return []
        steps.notice("info", f"reading {suspect.label} for what is unlikely in it")
        try:
            return await propose(steps.model, suspect, steps.spend)
        except EngineDied:
            raise
        except ModelError as error:
            steps.notice("warning", f"{suspect.label} was not scored: {error}")
            return []

    async def _rewrite(self, steps: Steps, suspect: Suspect, number: int, tried: set[str]) -> Repair | None:
        """A version of the suspect by the model that was not tried yet; None when it only repeats itself."""
        for resample in range(RESAMPLES):
            mark = steps.mark()
            # A seed of its own: with that of the next number, the same answer would come twice.
            how = rewrite.ask(suspect, number + resample, self.seed + resample * REWRITES_PER_SUSPECT)
            answer = await steps.ask(how, say=rewrite.question(suspect))
            steps.rewind(mark)
            code = rewrite.code_of(answer.message.text)
            if code and rewrite.is_new(code, tried):
                return Repair(suspect, code, f"A new version of {suspect.label}.")
        return None


def success(repair: Repair, goal: Goal, after: TestReport) -> str:
    others = "" if after.ok else " The tests that still fail failed before, too."
    return f"Fixed {repair.suspect.label}. {repair.why} Tests: {goal.before.counts} before, {after.counts} now.{others}"


def as_repair(proposal: Proposal, tried: set[str]) -> Repair:
    """The proposal as a new definition of its function."""
    suspect = proposal.suspect
    old, new = suspect.file.text.encode(), proposal.text.encode()
    end = len(new) - (len(old) - suspect.symbol.end_byte)
    line = new.rfind(b"\n", 0, suspect.symbol.start_byte) + 1
    before = new[line : suspect.symbol.start_byte].decode()
    code = ("" if before.strip() else before) + new[suspect.symbol.start_byte : end].decode(errors="replace")
    rewrite.is_new(code, tried)
    was = suspect.file.text.split("\n")[proposal.line].strip()
    return Repair(suspect, code, f"Line {proposal.line + 1} of {suspect.path} looks wrong: `{was}`.")
