"""The patch bot's work: the tests before, an agent in a copy, and what it left verified in a fresh tree.

Whatever the agent, the repository or the task say, only a patch leaves the agent's sandbox, as data. It counts when the rules
allow it and the test command, run by the bot itself on trees that no agent has touched, shows the repair.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import kcode
from kcode.ci.checks import Command, Judge, TestRun, cannot_run, fault_of, judged_by, run_tests, set_up
from kcode.ci.clean import fenced, one_line
from kcode.ci.git import GitFailed
from kcode.ci.repository import Checkout, FileChange, Workshop
from kcode.ci.rules import fault_by_exit_code, judge
from kcode.ci.task import Task
from kcode.clone_tree import CloneTree
from kcode.errors import SandboxFailed, SandboxUnavailable, StartError
from kcode.events import CallStarted, Event, Notice, SandboxViolation, TurnFinished
from kcode.model import Usage
from kcode.models.shared import shared
from kcode.opening import Apart, ChosenModel, Sessions, choose_model
from kcode.session import Session
from kcode.transcript import create
from kcode_prompts.prompt import load
from kcode_sandbox.clone import Change, Clone
from kcode_sandbox.clone_copy import open_copy
from kcode_sandbox.errors import SandboxError, SandboxUnavailableError

MAX_ATTEMPTS = 20
OUTPUT_CHARS = 4000
MAX_CHANGES = 1000
MAX_CHANGED_BYTES = 16 << 20
Status = Literal["fixed", "no_fix", "nothing_to_fix", "error", "interrupted"]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `allowed` are patterns of paths that may change although they steer tests, programs or CI."""

    task: Task
    command: Command
    attempts: int = 1
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verified:
    """A repair: the tree, what it changes, and the run of the tests that shows it."""

    tree: str
    changes: tuple[FileChange, ...]
    before: TestRun
    after: TestRun
    judged_by: Judge


@dataclass(frozen=True, slots=True)
class Attempt:
    """`fault` is why what the agent left is no verified repair, "" when it is."""

    number: int
    seed: int
    fault: str
    files: tuple[str, ...]
    finished: TurnFinished

    def document(self) -> dict[str, object]:
        finished = self.finished
        return {
            "number": self.number,
            "seed": self.seed,
            "fault": self.fault,
            "files": list(self.files),
            "status": finished.status,
            "reason": finished.reason,
            "turns": finished.steps,
            "completion_tokens": finished.usage.completion_tokens,
            "duration_s": round(finished.duration_s, 3),
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. `verified` is there exactly when the status is "fixed"."""

    status: Status
    reason: str
    before: TestRun
    attempts: tuple[Attempt, ...] = ()
    verified: Verified | None = None
    model: str = ""
    sandbox: str = ""

    @property
    def exit_code(self) -> int:
        return {"fixed": 0, "no_fix": 5, "nothing_to_fix": 5, "error": 2, "interrupted": 4}[self.status]

    @property
    def usage(self) -> Usage:
        return sum((attempt.finished.usage for attempt in self.attempts), Usage())


@dataclass(slots=True)
class Bot:
    """`run` once. `sessions` are of the checkout, with nothing of the user's configuration but the settings."""

    sessions: Sessions
    checkout: Checkout
    workshop: Workshop
    plan: Plan
    folder: Path
    """Gets the transcripts."""
    say: Say
    _sandbox: str = field(default="", init=False)
    _debris: dict[str, Change] = field(default_factory=dict[str, Change], init=False)
    """What set-up and tests by themselves make of the base's files."""

    async def run(self) -> Outcome:
        """Raises StartError when the tests cannot be run here or no model can be had."""
        await asyncio.to_thread(self.workshop.prepare)
        before = await self._tested("HEAD", is_first=True)
        fault = cannot_run(before)
        if fault:
            raise StartError(f"--test {self.plan.command.test!r}: {fault}")
        self.say(f"before: {before.told}")
        if before.passes and not self.plan.task.has_issue:
            return Outcome("nothing_to_fix", "the test command succeeds as it is; there is nothing to fix", before)
        chosen = choose_model(self.sessions.in_force(), self.sessions.paths)
        try:
            await chosen.model.start()
            return await self._attempts(chosen, before)
        finally:
            await chosen.model.close()

    async def _attempts(self, chosen: ChosenModel, before: TestRun) -> Outcome:
        first_seed = max(self.sessions.in_force().seed, 0)
        attempts: list[Attempt] = []
        verified: Verified | None = None
        for number in range(1, self.plan.attempts + 1):
            seed = first_seed + number - 1
            patch, left_out, finished = await self._work(number, seed, chosen, before)
            found = await self._verify(patch, before) if patch else f"nothing was changed: {finished.reason}"
            verified, fault = (None, found) if isinstance(found, str) else (found, "")
            files = tuple(change.path for change in verified.changes) if verified is not None else left_out
            attempts.append(Attempt(number, seed, fault, files, finished))
            self.say(f"attempt {number} of {self.plan.attempts}, seed {seed}: {fault or 'verified'}")
            if verified is not None or finished.status == "interrupted":
                break
        last = attempts[-1]
        outcome = Outcome("no_fix", last.fault, before, tuple(attempts), verified, chosen.model.name, self._sandbox)
        if verified is not None:
            return replace(outcome, status="fixed", reason=f"the test command passes now ({verified.after.told})")
        if last.finished.status == "interrupted":
            return replace(outcome, status="interrupted")
        if all(attempt.finished.status == "error" for attempt in attempts):
            return replace(outcome, status="error", reason=last.finished.reason)
        return outcome

    async def _work(
        self, number: int, seed: int, chosen: ChosenModel, before: TestRun
    ) -> tuple[bytes, tuple[str, ...], TurnFinished]:
        """Let the agent change a copy: its patch, what of its changes is not in it, and how it ended."""
        async with self._open(self.workshop.seed) as clone:
            transcript = create(self.folder, self.checkout.workspace, kcode.__version__, name=f"transcript-{number}")
            model = replace(chosen, model=shared(chosen.model))
            apart = Apart(model, clone.sandbox, CloneTree(clone.sandbox, ""), transcript, seed)
            session = await self.sessions.open_apart(apart)
            try:
                await set_up(clone.sandbox, self.plan.command)
                self._sandbox = session.sandbox_description
                if number == 1:
                    self.say(f"{session.model_name} · {session.sandbox_description} · transcripts in {self.folder}")
                    for notice in session.notices:
                        self.say(f"{notice.level}: {notice.text}")
                finished = await self._turn(session, prompt(self.plan, before, guided=session.profile.guided))
                patch, paths = await self._left_by(clone)
            finally:
                await session.close()
        return patch, paths, finished

    async def _left_by(self, clone: Clone) -> tuple[bytes, tuple[str, ...]]:
        """The patch of what was left in the copy, and the paths of it; none when it is more than anybody would review."""
        try:
            changes = [change for change in await clone.changes() if not self._is_debris(change)]
            for change in changes:
                if change.left_out:
                    self.say(f"{change.path} is left out: {change.left_out}")
            size = sum(change.new.size for change in changes if change.new is not None and not change.left_out)
            if len(changes) > MAX_CHANGES or size > MAX_CHANGED_BYTES:
                self.say(f"warning: {len(changes)} changed files with {size} bytes are no repair; they are left out")
                return b"", ()
            return await clone.patch(changes), tuple(change.path for change in changes)
        except OSError as error:
            # What was left may be such that this user cannot read it.
            self.say(f"warning: what the agent left cannot be read: {error}")
            return b"", ()

    def _is_debris(self, change: Change) -> bool:
        """Whether it is there without the agent as well: a file that tests write, or one just as the set-up leaves it."""
        known = self._debris.get(change.path)
        if known is None or known.new is None or change.new is None:
            return False
        return known.kind == change.kind == "added" or change.new.holds_the_same_as(known.new)

    async def _turn(self, session: Session, text: str) -> TurnFinished:
        finished: TurnFinished | None = None
        async with aclosing(session.submit(text)) as events:
            async for event in events:
                if isinstance(event, TurnFinished):
                    finished = event
                else:
                    self._tell(event)
        assert finished is not None
        return finished

    def _tell(self, event: Event) -> None:
        if isinstance(event, CallStarted):
            self.say(f"  {event.summary}")
        elif isinstance(event, Notice):
            self.say(f"{event.level}: {event.text}")
        elif isinstance(event, SandboxViolation):
            self.say(f"  sandbox: {event.violation.sentence}")

    async def _verify(self, patch: bytes, before: TestRun) -> Verified | str:
        """What the patch comes to by the rules and by the tests, or why it does not count."""
        try:
            tree = await asyncio.to_thread(self.workshop.tree_of, patch)
        except GitFailed as error:
            return f"the patch does not apply: {error}"
        changes = await asyncio.to_thread(self.workshop.changes, tree)
        verdict = judge(changes, self.plan.command.test, self.plan.allowed)
        if verdict.faults:
            return "; ".join(verdict.faults)
        if len(verdict.tests) == len(changes):
            return "nothing but tests was changed"
        # What decides are the tests as they were; then everything together, as it would be merged.
        judging = await asyncio.to_thread(self.workshop.with_base, tree, verdict.tests) if verdict.tests else tree
        after = await self._tested(judging)
        fault = fault_of(before, after)
        if fault:
            return fault
        if verdict.tests:
            return await self._verify_with_tests(tree, changes, verdict.tests, before)
        if before.passes:
            return "the test command passes without the change, and no new test shows what was wrong"
        return await self._confirmed(tree, changes, "HEAD", before, after)

    async def _confirmed(
        self, tree: str, changes: tuple[FileChange, ...], base: str, before: TestRun, after: TestRun
    ) -> Verified | str:
        """All of it once more, since a test that fails only sometimes would show a repair that is none."""
        how = judged_by(before, after)
        fault = fault_by_exit_code(changes, self.plan.allowed) if how == "exit code" else ""
        if fault:
            return fault
        again = await self._tested(base)
        if again.passes:
            return "the tests fail only sometimes: at the second run they passed without the change"
        fault = fault_of(again, after) or fault_of(before, await self._tested(tree))
        return f"at the second run: {fault}" if fault else Verified(tree, changes, before, after, how)

    async def _verify_with_tests(
        self, tree: str, changes: tuple[FileChange, ...], tests: tuple[FileChange, ...], before: TestRun
    ) -> Verified | str:
        """The whole change, with its own tests; where nothing failed before, these must have."""
        after, base = await self._tested(tree), "HEAD"
        if before.passes:
            base = await asyncio.to_thread(self.workshop.base_with, tests)
            before = await self._tested(base)
            if before.passes:
                return "the new tests pass without the change, too"
        fault = fault_of(before, after)
        return f"with its new tests: {fault}" if fault else await self._confirmed(tree, changes, base, before, after)

    async def _tested(self, tree: str, *, is_first: bool = False) -> TestRun:
        """The test command in a fresh copy of the tree."""
        folder = await asyncio.to_thread(self.workshop.lay_out, tree)
        try:
            async with self._open(folder) as clone:
                await set_up(clone.sandbox, self.plan.command)
                run = await run_tests(clone.sandbox, self.plan.command)
                if is_first:
                    self._debris = {change.path: change for change in await clone.changes()}
                return run
        finally:
            await asyncio.to_thread(self.workshop.drop, folder)

    @asynccontextmanager
    async def _open(self, folder: Path) -> AsyncGenerator[Clone]:
        """A sandbox in which a copy of `folder` stands at the checkout's place."""
        clone = None
        try:
            store = self.sessions.paths.clones(self.checkout.workspace)
            clone = await open_copy(self.sessions.policy(), self.checkout.root, folder, store, self.checkout.kept)
            await clone.sandbox.start()
            yield clone
        except SandboxUnavailableError as error:
            raise SandboxUnavailable(f"kcode ci works in the sandbox alone: {error}") from error
        except SandboxError as error:
            raise SandboxFailed(str(error)) from error
        finally:
            if clone is not None:
                await clone.discard()


def prompt(plan: Plan, before: TestRun, *, guided: bool) -> str:
    """What the agent is told. A model that is led by the hand gets no more than the matter itself."""
    task = plan.task
    words = "\n\n".join(part for part in (task.title, task.text) if part)
    if guided:
        # A question mark would make it a question.
        head = "A test fails. Find the bug and fix it." if not before.passes else "Fix the bug."
        return f"{head}\n\n{words.replace('?', '.')}".strip()
    parts: list[str] = []
    if words:
        parts.append(f"The {task.kind}:\n\n{fenced(words, 12_000)}")
    if task.log:
        parts.append(f"A log of the failure:\n\n{fenced(task.log, 8_000)}")
    if not before.passes:
        parts.append(f"What the command prints ({before.told}):\n\n{fenced(before.output, OUTPUT_CHARS)}")
    name = "ci_issue" if before.passes else "ci"
    return load(name, command=one_line(plan.command.test), problem="\n\n".join(parts))
