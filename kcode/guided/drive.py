"""The driver of small models: kcode finds out what is wanted and where, the model supplies the text, tests judge it.

A turn about failing tests goes: run the tests; choose suspects; try repairs one after another, the likeliest first, each from the
same clean tree; stop when the tests pass. Repairs come from the model's surprise (surprise.py) and from rewrites of a suspect
(rewrite.py). A question is answered from what the workspace shows (talk.py), and any other task is a change (change.py). When the
person refuses a call the turn ends: what is wanted instead only the person knows.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from kcode.errors import EngineDied, ModelError
from kcode.guided import rewrite
from kcode.guided.change import Change
from kcode.guided.goal import Goal, choose, missing_packages, named_target
from kcode.guided.reproduction import as_said, fails_as_said, reproduce
from kcode.guided.sayings import sayings
from kcode.guided.surprise import Proposal, propose
from kcode.guided.suspects import Suspect, find_suspects, words_of
from kcode.guided.talk import (
    answer,
    greet,
    kind_of,
    mentions_failure,
    names_code,
    reports_bug,
    says_what_is_wrong,
    tells_of_failure,
    tells_of_mistake,
)
from kcode.guided.trial import (
    FIRST_TIMEOUT_S,
    Refused,
    accepted,
    clean,
    forget_reads,
    last_report,
    run_tests,
    tests_tool,
    timeout_after,
)
from kcode.loop import work
from kcode.model import TextModel, Usage
from kcode.repomap import load_sources
from kcode.steps import Steps
from kcode.tools.testing.report import TestReport
from kcode.turn import Ending
from kcode_sandbox.sandbox import Sandbox

MAX_ATTEMPTS = 8
MAX_SUSPECTS = 3
# Suspects below this share of the first one's weight wait until nothing is left to try with the strong ones.
STRONG_SHARE = 0.6
ATTEMPTS_OF_OTHERS = 2
REWRITES_PER_SUSPECT = 3
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
        await steps.make_room()
        if not steps.model.binds_answers:
            steps.notice("warning", f"{steps.model.name} cannot be bound to what exists; it works freely")
            return await work(steps, text)
        is_task = tells_of_failure(text) or says_what_is_wrong(text)
        kind = "task" if is_task else await kind_of(steps, text, self.seed)
        if kind == "greeting":
            return await greet(steps, text)
        if kind == "question":
            return await answer(steps, self.sandbox, text)
        try:
            return await self._task(steps, text)
        except Refused as refused:
            return Ending("interrupted", str(refused), f"{refused} Say what to do instead.")

    async def _task(self, steps: Steps, text: str) -> Ending:
        is_report = tells_of_mistake(text) or await reports_bug(steps, text)
        goal = await self._goal(steps, text) if is_report else None
        if goal is not None:
            return await self._repair(steps, text, goal)
        before = last_report(steps) if is_report else await run_tests(steps, FIRST_TIMEOUT_S)
        reason = await self._silence(before) if before is not None and mentions_failure(text) else ""
        if reason and not await names_code(self.sandbox, text):
            reason += ", and the message names nothing else to change"
            return Ending("limit", reason, f"Not done: {reason}.")
        named = frozenset(saying.name for saying in sayings(text))
        return await Change(steps, self.sandbox, self.seed, text, before, named=named).carry_out()

    async def _repair(self, steps: Steps, text: str, goal: Goal) -> Ending:
        """Reach the goal, or leave everything as it is."""
        files = await load_sources(self.sandbox, words_of(text))
        forget_reads(steps)
        suspects = find_suspects(files, text, goal.wanted, MAX_SUSPECTS, goal.before.calls)
        if not suspects and goal.is_extra:
            return await Change(steps, self.sandbox, self.seed, text, await run_tests(steps, FIRST_TIMEOUT_S)).carry_out()
        if not suspects:
            steps.notice("info", "no function stands out as the cause; the model chooses where to change something")
            before = goal.before
            if goal.known is None and (whole := await run_tests(steps, FIRST_TIMEOUT_S)) is not None:
                goal, before = goal.knowing(whole), whole
            return await Change(steps, self.sandbox, self.seed, text, before, goal).carry_out()
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
                    await clean(steps, snapshot)
                    steps.rewind(mark)
                    steps.take_steering()
        finally:
            # An interrupt or a limit may come while a repair is being tested: what no test has judged does not stay.
            if fixed is None:
                await clean(steps, snapshot)
        reason = f"{self.attempts} repairs were tried and none made the tests pass; the files are as they were"
        return Ending("limit", reason, f"Not fixed: {reason}. Still failing: {goal.before.counts}.", self.attempts)

    async def _goal(self, steps: Steps, text: str) -> Goal | None:
        """What must pass; None when no test fails. A test that the task names is run alone, before all of them are.

        What the message says of a call comes first: such a test takes a moment, and finds the functions that matter.
        """
        extra = await self._said(steps, text)
        if extra is not None:
            return extra
        for target in (named_target(text), ""):
            report = await run_tests(steps, FIRST_TIMEOUT_S, target, calls_wanted=True)
            if report is None:
                return None
            if missing := await self._missing(report):
                steps.notice("warning", f"the tests cannot say what is wrong: {missing}")
                return None
            if report.failing and not report.ok:
                return choose(text, report, target)
            if not target:
                return None
        return None

    async def _said(self, steps: Steps, text: str) -> Goal | None:
        """The goal that what the message says becomes true; None when it says nothing that can be tested, or it is not so."""
        found = reproduce(text, await load_sources(self.sandbox, words_of(text)))
        if found is None or tests_tool(steps) is None:
            return None
        for path, data in found.files.items():
            await self.sandbox.write(path, data)
        steps.notice("info", "tried as a test: " + "; ".join(f"{said.call} should be {said.wanted.text}" for said in found.said))
        report = await run_tests(steps, FIRST_TIMEOUT_S, found.path, calls_wanted=True)
        if report is None or not fails_as_said(report):
            missing = await self._missing(report) if report is not None else ""
            call = found.said[0].call
            steps.notice("info", f"{call} cannot be tried: {missing}" if missing else f"{call} does not do what is said of it")
            return None
        return Goal(report, as_said(report), None, found.path, is_extra=True)

    async def _missing(self, report: TestReport) -> str:
        """What has to be installed before the tests can say something, in words; "" for nothing."""
        packages = missing_packages(report, [stat.path for stat in await self.sandbox.list_files(".")])
        return f"{', '.join(packages)} {'is' if len(packages) == 1 else 'are'} not installed" if packages else ""

    async def _silence(self, report: TestReport) -> str:
        """Why a run shows nothing to repair; "" when it does."""
        if report.ok:
            return f"no test fails ({report.counts})"
        if missing := await self._missing(report):
            return f"the tests cannot say what is wrong, {missing}"
        return "" if report.passed else re.split(r";|\n", report.problem)[0].rstrip(".")

    async def _apply(self, steps: Steps, repair: Repair) -> bool:
        arguments = {"path": repair.suspect.path, "name": repair.suspect.symbol.qualified, "code": repair.code}
        called = accepted(await steps.run("rewrite_function", arguments, text=repair.why))
        return not called.result.is_error

    async def _judge(self, steps: Steps, goal: Goal, untouched: str) -> tuple[Goal, TestReport | None]:
        """Test the tree as it is; the report when the goal is met. It knows more when `untouched` was tested as well."""
        self.attempts += 1
        timeout_s = FIRST_TIMEOUT_S if goal.known is None else timeout_after(goal.before)
        if goal.quick:
            report = await run_tests(steps, timeout_s, goal.quick, recorded=True)
            if report is None or goal.refused_by(report):
                return goal, None
        report = await run_tests(steps, timeout_s, recorded=True)
        if report is not None and goal.is_unclear(report):
            repaired = await steps.snapshot()
            await clean(steps, untouched)
            first = await run_tests(steps, timeout_s)
            await clean(steps, repaired)
            goal = goal if first is None else goal.knowing(first)
        return goal, report if report is not None and goal.met(report) else None

    async def _repairs(self, steps: Steps, suspects: list[Suspect]) -> AsyncGenerator[Repair, None]:
        """Repairs to try, at most MAX_ATTEMPTS: all that the strong suspects have first, then the others' turn comes."""
        tried = {rewrite.squeezed(suspect.code) for suspect in suspects}
        strong = [suspect for suspect in suspects if suspect.weight >= STRONG_SHARE * suspects[0].weight]
        others = suspects[len(strong) :]
        left = MAX_ATTEMPTS
        for group, kept in ((strong, ATTEMPTS_OF_OTHERS if others else 0), (others, 0)):
            async with aclosing(self._repairs_of(steps, group, left - kept, tried)) as repairs:
                async for repair in repairs:
                    left -= 1
                    yield repair

    async def _repairs_of(
        self, steps: Steps, suspects: list[Suspect], count: int, tried: set[str]
    ) -> AsyncGenerator[Repair, None]:
        """At most `count`: each suspect's clear surprises, then rewrites and weaker surprises in turn.

        A suspect is read only when the clear repairs of those before it have failed: a test run costs less than reading.
        """
        weaker: list[Proposal] = []
        made = 0
        for suspect in suspects:
            proposals = await self._proposals(steps, suspect)
            clear = [proposal for proposal in proposals[:CLEAR_PER_SUSPECT] if proposal.gain >= CLEAR_GAIN]
            weaker += proposals[len(clear) :]
            for proposal in clear[: count - made]:
                made += 1
                yield as_repair(proposal, tried)
        weaker = sorted((proposal for proposal in weaker if proposal.gain >= POOR_GAIN), key=lambda proposal: -proposal.gain)
        rewrites = [(suspect, number) for number in range(REWRITES_PER_SUSPECT) for suspect in suspects]
        for turn in range(count - made):
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
    done = f"Fixed {repair.suspect.label}. {repair.why}"
    others = "" if after.ok else " The tests that still fail failed before, too."
    if not goal.is_extra:
        return f"{done} Tests: {goal.before.counts} before, {after.counts} now.{others}"
    done += " It is now as the message says it should be."
    if after.passed:
        return f"{done} Tests: {after.counts}.{others}"
    failing = f"The project's own tests fail as they did before: {after.counts}."
    return f"{done} {failing if after.failing else 'No test of the project runs here.'}"


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
