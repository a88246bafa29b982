"""Several whole attempts at one task, each with a seed of its own in a clone of the workspace; tests choose which one counts.

The first attempt that passes wins; when all are wanted, the one that passes with the smallest diff. Passing is: all of the
project's tests pass, and those that were there before are still there. When none passes, one counts that finished and left fewer
tests failing than before, none of them one that passed. Everything else leaves the workspace as it was. Every attempt's patch and
transcript are kept beside the session, in ID.attempts. Attempts run one after another, so that what comes of them depends on the
seeds alone.
"""

from __future__ import annotations

import shutil
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import kcode
from kcode.checkpoint import Checkpoints
from kcode.clone_tree import CloneTree
from kcode.errors import CheckpointFailed, SandboxUnavailable, StartError
from kcode.events import Event, Notice, TurnFinished
from kcode.guided.trial import FIRST_TIMEOUT_S
from kcode.model import Usage
from kcode.models.shared import shared
from kcode.opening import Apart, ChosenModel, Sessions, choose_model
from kcode.session import Session
from kcode.tools.testing.report import TestReport
from kcode.tools.testing.run import run_project_tests
from kcode.transcript import create, new_session_id
from kcode_sandbox.clone import Clone, Conflict, open_clone
from kcode_sandbox.errors import SandboxError, SandboxUnavailableError
from kcode_sandbox.policy import Policy
from kcode_sandbox.sandbox import Sandbox

MAX_ATTEMPTS = 100
Verdict = Literal["passed", "better", "failed", "untested", "unchanged"]


@dataclass(frozen=True, slots=True)
class Plan:
    """`run_all` goes on after one has passed; `keep_best` brings the best one over even when none passes."""

    count: int
    run_all: bool = False
    keep_best: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one ended. `failing` are tests, `patch` is the file of its changes ("" for none), `tests` what the tests said."""

    number: int
    seed: int
    verdict: Verdict
    tests: str
    failing: int
    diff_lines: int
    patch_bytes: int
    patch: str
    finished: TurnFinished

    def document(self) -> dict[str, object]:
        finished = self.finished
        return {
            "number": self.number,
            "seed": self.seed,
            "verdict": self.verdict,
            "tests": self.tests,
            "diff_lines": self.diff_lines,
            "patch": self.patch,
            "status": finished.status,
            "reason": finished.reason,
            "turns": finished.steps,
            "completion_tokens": finished.usage.completion_tokens,
            "duration_s": round(finished.duration_s, 3),
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of all. `winner` is the attempt that counts, by its number; `conflicts` of it could not be brought over."""

    attempts: tuple[Attempt, ...]
    winner: int | None
    conflicts: tuple[Conflict, ...]
    finished: TurnFinished
    diff: str
    transcript: Path

    def document(self) -> dict[str, object]:
        """What the JSON result says of them."""
        return {
            "tried": [attempt.document() for attempt in self.attempts],
            "winner": self.winner,
            "conflicts": [{"path": conflict.path, "reason": conflict.reason} for conflict in self.conflicts],
        }


class Watcher(Protocol):
    """Sees the sessions as they begin, and every event but their last."""

    def begun(self, session: Session) -> None: ...

    def event(self, event: Event) -> None: ...


@dataclass(slots=True)
class _Try:
    """One attempt that may still win."""

    session: Session
    clone: Clone
    tree: CloneTree
    ended: Attempt | None = None

    async def end(self) -> None:
        try:
            await self.session.close()
        finally:
            await self.clone.discard()


class Attempts:
    """`run` once. What it opens is closed when it ends, however it ends."""

    def __init__(self, sessions: Sessions, plan: Plan, prompt: str, watcher: Watcher) -> None:
        settings = sessions.in_force()
        if not 1 <= plan.count <= MAX_ATTEMPTS:
            raise StartError(f"--attempts {plan.count}: it must be between 1 and {MAX_ATTEMPTS}")
        if settings.sandbox != "workspace-write":
            raise StartError(f"--attempts works in copies of the workspace, which --sandbox {settings.sandbox} does not have")
        self._sessions = sessions
        self._plan = plan
        self._prompt = prompt
        self._watcher = watcher
        self._first_seed = max(settings.seed, 0)
        self._policy: Policy = sessions.policy()
        self._id = new_session_id()
        self._sessions_folder = sessions.paths.sessions(sessions.workspace)
        self._folder = self._sessions_folder / f"{self._id}.attempts"
        self._best: _Try | None = None

    async def run(self) -> Outcome:
        """Raises StartError when no clone or no model can be had."""
        checkpoints = Checkpoints(self._sessions.workspace, self._sessions.paths.checkpoints(self._sessions.workspace))
        base = ""
        with suppress(CheckpointFailed):
            base = await checkpoints.snapshot()
        chosen = choose_model(self._sessions.in_force(), self._sessions.paths)
        attempts: list[Attempt] = []
        try:
            await chosen.model.start()
            before = await self._tests_before()
            for number in range(1, self._plan.count + 1):
                attempts.append(await self._attempt(number, chosen, base, before))
                is_won = attempts[-1].verdict == "passed" and not self._plan.run_all
                if is_won or attempts[-1].finished.status == "interrupted":
                    break
            outcome = await self._settle(tuple(attempts))
        finally:
            if self._best is not None:
                await self._best.end()
            await chosen.model.close()
        if base and outcome.finished.status != "interrupted":
            with suppress(CheckpointFailed):
                outcome = replace(outcome, diff=await checkpoints.diff(base))
        return outcome

    async def _open_clone(self) -> Clone:
        clone = None
        try:
            clone = await open_clone(self._policy, self._sessions.paths.clones(self._sessions.workspace))
            await clone.sandbox.start()
        except SandboxError as error:
            if clone is not None:
                await clone.discard()
            if isinstance(error, SandboxUnavailableError):
                raise SandboxUnavailable(f"--attempts works in copies of the workspace: {error}") from error
            raise
        return clone

    async def _tests_before(self) -> TestReport:
        clone = await self._open_clone()
        try:
            return await _tested(clone.sandbox)
        finally:
            await clone.discard()

    async def _attempt(self, number: int, chosen: ChosenModel, base: str, before: TestReport) -> Attempt:
        seed = self._first_seed + number - 1
        self._watcher.event(Notice("info", f"attempt {number} of {self._plan.count}, seed {seed}"))
        current = await self._begin(number, seed, chosen, base)
        try:
            finished = await self._turn(current.session)
            attempt = current.ended = await self._judge(number, seed, current, finished, before)
        except BaseException:
            await current.end()
            raise
        previous = self._best
        if previous is None or _rank(attempt) < _rank(previous.ended):
            self._best, loser = current, previous
        else:
            loser = current
        if loser is not None:
            await loser.end()
        said = f"attempt {number}: {attempt.verdict}, {attempt.tests}; {attempt.diff_lines} lines changed"
        self._watcher.event(Notice("info", said))
        return attempt

    async def _begin(self, number: int, seed: int, chosen: ChosenModel, base: str) -> _Try:
        clone = await self._open_clone()
        try:
            tree = CloneTree(clone.sandbox, base)
            transcript = create(self._folder, self._sessions.workspace, kcode.__version__, self._id, str(number))
            model = replace(chosen, model=shared(chosen.model))
            session = await self._sessions.open_apart(Apart(model, clone.sandbox, tree, transcript, seed))
        except BaseException:
            await clone.discard()
            raise
        self._watcher.begun(session)
        return _Try(session, clone, tree)

    async def _turn(self, session: Session) -> TurnFinished:
        finished: TurnFinished | None = None
        async with aclosing(session.submit(self._prompt)) as events:
            async for event in events:
                if isinstance(event, TurnFinished):
                    finished = event
                else:
                    self._watcher.event(event)
        assert finished is not None
        return finished

    async def _judge(self, number: int, seed: int, current: _Try, finished: TurnFinished, before: TestReport) -> Attempt:
        patch = await current.clone.patch()
        path = self._folder / f"{number}.patch"
        if patch:
            path.write_bytes(patch)
        verdict: Verdict = "unchanged"
        tests, failing = "nothing was changed", before.failed + before.errors
        if patch and finished.status != "interrupted":
            with suppress(CheckpointFailed):
                snapshot = await current.tree.snapshot()
                after = await _tested(current.clone.sandbox)
                # What the tests left in the tree is no part of the attempt.
                await current.tree.restore(snapshot)
                verdict, tests, failing = _verdict(before, after, finished), _said(after), after.failed + after.errors
        elif patch:
            verdict, tests = "untested", "it was interrupted"
        kept = str(path) if patch else ""
        return Attempt(number, seed, verdict, tests, failing, _diff_lines(patch), len(patch), kept, finished)

    async def _settle(self, attempts: tuple[Attempt, ...]) -> Outcome:
        """Bring the best attempt over if it may be, and let the session go on from it."""
        assert self._best is not None
        best = self._best.ended
        assert best is not None
        is_stopped = attempts[-1].finished.status == "interrupted"
        passes = best.verdict in {"passed", "better"} and not is_stopped
        conflicts: tuple[Conflict, ...] = ()
        if passes or (self._plan.keep_best and best.patch and not is_stopped):
            conflicts = await self._merge(self._best.clone)
        transcript = self._sessions_folder / f"{self._id}.jsonl"
        shutil.copyfile(self._folder / f"{best.number}.jsonl", transcript)
        transcript.chmod(0o600)
        finished = _finished(attempts, best, self._plan, conflicts, passes=passes)
        return Outcome(attempts, best.number if passes else None, conflicts, finished, "", transcript)

    async def _merge(self, clone: Clone) -> tuple[Conflict, ...]:
        sandbox: Sandbox = await self._sessions.open_sandbox()
        try:
            merge = await clone.merge(sandbox)
        finally:
            await sandbox.close()
        for left in (*merge.conflicts, *merge.left_out):
            self._watcher.event(Notice("warning", f"{left.path} was not brought over: {left.reason}"))
        return merge.conflicts


async def _tested(sandbox: Sandbox) -> TestReport:
    try:
        return await run_project_tests(sandbox, None, FIRST_TIMEOUT_S)
    except SandboxError as error:
        return TestReport("", problem=str(error))


def _said(report: TestReport) -> str:
    return report.problem.splitlines()[0] if report.problem else report.counts


def _verdict(before: TestReport, after: TestReport, finished: TurnFinished) -> Verdict:
    if after.problem or not after.passed + after.failed + after.errors:
        return "untested"
    is_lost = after.passed + len(after.failing) < before.passed + len(before.failing)
    if after.ok and not is_lost:
        return "passed"
    known = {test.id for test in before.failing}
    is_worse = is_lost or after.passed < before.passed or any(test.id not in known for test in after.failing)
    fewer = after.failed + after.errors < before.failed + before.errors
    return "better" if fewer and not is_worse and finished.status == "finished" else "failed"


def _rank(attempt: Attempt | None) -> tuple[int, int, int, int, int]:
    """The best one first; one that says nothing about itself is better than one that changed nothing."""
    assert attempt is not None
    order: tuple[Verdict, ...] = ("passed", "better", "failed", "untested", "unchanged")
    verdict = order.index(attempt.verdict)
    failing = attempt.failing if verdict else 0
    return verdict, failing, attempt.diff_lines, attempt.patch_bytes, attempt.number


def _diff_lines(patch: bytes) -> int:
    """Lines added and removed."""
    heads = (b"+++ ", b"--- ")
    return sum(line[:1] in {b"+", b"-"} and not line.startswith(heads) for line in patch.splitlines())


def _finished(
    attempts: tuple[Attempt, ...], best: Attempt, plan: Plan, conflicts: tuple[Conflict, ...], *, passes: bool
) -> TurnFinished:
    """The end of the whole: what all attempts cost, and what the best one says."""
    last, count = attempts[-1].finished, len(attempts)
    usage = sum((attempt.finished.usage for attempt in attempts), Usage())
    steps = sum(attempt.finished.steps for attempt in attempts)
    duration_s = sum(attempt.finished.duration_s for attempt in attempts)
    whole = replace(best.finished, usage=usage, steps=steps, duration_s=duration_s, attempts=count)
    if last.status == "interrupted":
        return replace(whole, status="interrupted", reason=f"{last.reason}; the files are as they were", result=last.result)
    if conflicts:
        names = ", ".join(conflict.path for conflict in conflicts)
        reason = f"attempt {best.number} counts, but {names} could not be brought over; its patch is {best.patch}"
        return replace(whole, status="error", reason=reason)
    if passes:
        how = "passes the tests" if best.verdict == "passed" else "leaves fewer tests failing, and none that passed before"
        return replace(whole, status="finished", reason=f"attempt {best.number} of {plan.count} (seed {best.seed}) {how}")
    if all(attempt.finished.status == "error" for attempt in attempts):
        return replace(whole, status="error", reason=last.reason)
    kept = "the files are as they were"
    if best.patch:
        kept = f"attempt {best.number} was kept all the same" if plan.keep_best else f"{kept}; the best patch is {best.patch}"
    return replace(whole, status="limit", reason=f"none of {count} attempts made the tests pass; {kept}")
