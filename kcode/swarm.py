"""Sub-agents: each does one `task` in a copy of the workspace, beside its siblings, and reports.

A sub-agent that knows the conversation begins with the very messages that its parent has read, so that an engine which keeps what
it has computed shares them. What it changed is brought over when it has finished, in the order of the calls and after all of its
siblings have ended; what cannot be brought over is told, and every patch and transcript is kept beside the session, in ID.agents.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from kcode.errors import KcodeError
from kcode.events import AgentState, AgentStatus, CallStarted, Event, Notice, PlainDisplay, StepFinished, TurnFinished
from kcode.messages import Message
from kcode.model import Usage
from kcode.tools.outputs import Outputs
from kcode.tools.task import TaskArguments
from kcode.tools.together import apart, in_order, my_turn
from kcode.tools.tool import Emit, Outcome
from kcode_prompts.prompt import load
from kcode_sandbox.clone import Clone, Merge, open_clone
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.errors import SandboxError, SandboxUnavailableError
from kcode_sandbox.sandbox import Sandbox

MAX_AT_ONCE = 4
MAX_PER_TURN = 15
MAX_STEPS = 100
MAX_NAMES = 30
IN_COPY = (
    "You work in a copy of the workspace, under the same paths; what you change there is brought over once you have finished."
)
READING = "You can read and run things but change nothing in the workspace: {reason}."
STATUSES: dict[str, AgentStatus] = {"finished": "finished", "interrupted": "stopped"}


class AgentSession(Protocol):
    """A sub-agent's conversation, as of kcode/session.py."""

    def submit(self, text: str) -> AsyncGenerator[Event, None]: ...

    def steer(self, text: str) -> bool: ...

    def interrupt(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a sub-agent works, in a started sandbox that its session closes, and the messages it knows from the start."""

    number: int
    sandbox: Sandbox
    messages: tuple[Message, ...]


OpenAgent = Callable[[Seat], Awaitable[AgentSession]]


@dataclass(slots=True)
class _Agent:
    """`clone` is None where it can only read; `is_stopped` by the user."""

    state: AgentState
    emit: Emit
    is_stopped: bool = False
    session: AgentSession | None = None
    sandbox: Sandbox | None = None
    clone: Clone | None = None
    usage: Usage = field(default_factory=Usage)

    async def leave(self) -> None:
        """End it and everything it has."""
        try:
            if self.session is not None:
                await self.session.close()
        finally:
            clone, self.clone = self.clone, None
            if clone is not None:
                await clone.discard()
            elif self.sandbox is not None:
                await self.sandbox.close()


class Swarm:
    """The sub-agents of one session. `run` is what its tool `task` does; it may be called several times at once."""

    def __init__(
        self, sandbox: Sandbox, clones: Path, folder: Path, messages: Callable[[], Sequence[Message]], open_agent: OpenAgent
    ) -> None:
        """`sandbox` is the session's, `messages` gives its conversation; `folder` keeps what sub-agents leave."""
        self._sandbox = sandbox
        self._clones = clones
        self._folder = folder
        self._messages = messages
        self._open_agent = open_agent
        self._outputs = Outputs(sandbox)
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._agents: list[_Agent] = []
        self._last = max((int(path.stem) for path in folder.glob("*.jsonl") if path.stem.isdigit()), default=0)
        self._tell: Callable[[Event], None] | None = None

    @property
    def agents(self) -> tuple[AgentState, ...]:
        """Those of the present turn, or of the last one."""
        return tuple(agent.state for agent in self._agents)

    def begin_turn(self, tell: Callable[[Event], None]) -> None:
        """A turn begins, whose events go to `tell`."""
        self._agents = []
        self._tell = tell

    def stop(self, number: int) -> bool:
        """End one soon, its siblings and the parent go on. False when none of that number is at work or waits."""
        for agent in self._at_work(number):
            agent.is_stopped = True
            if agent.session is not None:
                agent.session.interrupt()
            return True
        return False

    def steer(self, number: int, text: str) -> bool:
        """Say something to one, which reads it after its present step. False when none of that number is at work."""
        return any(agent.session is not None and agent.session.steer(text) for agent in self._at_work(number))

    async def run(self, arguments: TaskArguments, emit: Emit) -> Outcome:
        await in_order()
        if len(self._agents) >= MAX_PER_TURN:
            return _refused(f"This turn has had {MAX_PER_TURN} sub-agents, the most there may be. Do the rest yourself.")
        self._last += 1
        agent = _Agent(AgentState(self._last, " ".join(arguments.description.split()), "waiting"), emit)
        self._agents.append(agent)
        known = self._known(fork=arguments.fork)
        self._show(agent)
        ended: AgentStatus = "failed"
        try:
            async with self._room:
                with apart():
                    finished = await self._work(agent, known, arguments.prompt)
            ended = "stopped" if finished is None else STATUSES.get(finished.status, "failed")
            self._show(agent, status=ended, doing=None if finished is None else finished.reason)
            await my_turn()
            return await self._settle(agent, finished)
        except asyncio.CancelledError:
            ended = "stopped"
            raise
        except (KcodeError, SandboxError) as error:
            ended = "failed"
            return replace(_refused(f"The sub-agent failed: {error}"), usage=agent.usage)
        finally:
            await agent.leave()
            if agent.state.status != ended:
                self._show(agent, status=ended)

    def _at_work(self, number: int) -> list[_Agent]:
        return [item for item in self._agents if item.state.agent == number and item.state.status in {"waiting", "working"}]

    def _known(self, *, fork: bool) -> tuple[Message, ...]:
        """What stood before the answer that makes the call; of a fresh start only the head."""
        messages = tuple(self._messages())
        if not fork:
            return tuple(message for message in messages[:1] if message.role == "system")
        answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
        return messages[: answers[-1]] if answers else messages

    async def _work(self, agent: _Agent, known: tuple[Message, ...], task: str) -> TurnFinished | None:
        """How its turn ended; None when it was stopped before it began."""
        if agent.is_stopped:
            return None
        self._show(agent, status="working")
        place = await self._seat(agent)
        assert agent.sandbox is not None
        agent.session = await self._open_agent(Seat(agent.state.agent, agent.sandbox, known))
        if agent.is_stopped:
            return None
        finished: TurnFinished | None = None
        async with aclosing(agent.session.submit(load("agent", place=place, task=task))) as events:
            async for event in events:
                if isinstance(event, StepFinished):
                    self._show(agent, steps=event.step)
                elif isinstance(event, CallStarted):
                    self._show(agent, doing=event.summary)
                elif isinstance(event, Notice) and event.level != "info" and self._tell is not None:
                    self._tell(replace(event, text=f"agent {agent.state.agent}: {event.text}"))
                elif isinstance(event, TurnFinished):
                    finished = event
        assert finished is not None
        agent.usage = finished.usage
        return finished

    async def _seat(self, agent: _Agent) -> str:
        """Open its copy of the workspace, else a sandbox that only reads; what it is told of that."""
        policy = self._sandbox.policy
        reason = "the session itself may not"
        if policy.profile == "workspace-write":
            try:
                agent.clone = await open_clone(policy, self._clones)
                agent.sandbox = agent.clone.sandbox
                await agent.sandbox.start()
            except SandboxUnavailableError as error:
                reason = f"it cannot be copied here ({error})"
                await agent.leave()
            else:
                return IN_COPY
        agent.sandbox = open_sandbox(replace(policy, profile="read-only", writable=()))
        await agent.sandbox.start()
        return READING.format(reason=reason)

    async def _settle(self, agent: _Agent, finished: TurnFinished | None) -> Outcome:
        """Bring over what it changed if it finished; the result of the call."""
        if finished is None:
            return _refused("The user stopped the sub-agent before it began.")
        is_done = finished.status == "finished"
        report = finished.result or "(it said nothing)"
        if not is_done:
            report = f"The sub-agent did not finish: {finished.reason}. It said last: {report}"
        notes, changed = await self._bring_over(agent, merge=is_done)
        text = "\n".join([await self._outputs.bounded(report, f"agent-{agent.state.agent}"), "", *notes]).strip()
        return Outcome(text, PlainDisplay(text), is_error=not is_done, changed=changed, usage=agent.usage)

    async def _bring_over(self, agent: _Agent, *, merge: bool) -> tuple[list[str], tuple[str, ...]]:
        """What the model is told of the changes, and the files that were changed in the workspace."""
        clone = agent.clone
        changes = () if clone is None else await clone.changes()
        if clone is None or not changes:
            return ["[it changed no files]"], ()
        patch = await clone.patch(changes)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._folder / f"{agent.state.agent}.patch").write_bytes(patch)
        merged = Merge((), ())
        if merge:
            others = [other.clone for other in self._agents if other.clone is not None and other is not agent]
            merged = await clone.merge(self._sandbox, others)
        notes = [f"[brought over: {_names(merged.applied)}]"] if merged.applied else []
        notes += [f"[not brought over: {left.path}: {left.reason}]" for left in (*merged.conflicts, *merged.left_out)[:MAX_NAMES]]
        if not merge:
            notes.append(f"[not brought over: {_names([change.path for change in changes])}]")
        if not merge or merged.conflicts:
            where = await self._outputs.save(patch.decode(errors="replace"), f"agent-{agent.state.agent}-patch")
            notes.append(f"[the patch of its changes is in {where}]" if where else "[there is no room here for its patch]")
        return notes, merged.applied

    def _show(self, agent: _Agent, status: AgentStatus | None = None, steps: int | None = None, doing: str | None = None) -> None:
        before = agent.state
        agent.state = replace(
            before,
            status=before.status if status is None else status,
            steps=before.steps if steps is None else steps,
            doing=before.doing if doing is None else doing,
        )
        if self._tell is not None:
            self._tell(agent.state)
        agent.emit(f"{agent.state.line}\n")


def _refused(text: str) -> Outcome:
    return Outcome(text, PlainDisplay(text), is_error=True)


def _names(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MAX_NAMES} more" if len(paths) > MAX_NAMES else ""
    return ", ".join(paths[:MAX_NAMES]) + more
