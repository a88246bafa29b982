"""One conversation: turns in, events out, everything on disk before it is relied on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from kcode.approval import Approval, ApprovalMode
from kcode.compaction import Compaction, what_to_keep
from kcode.context import EXACTLY, Context
from kcode.custom_commands import CustomCommand, expand
from kcode.errors import KcodeError
from kcode.events import Event, Notice, TurnFinished
from kcode.grants import Grants
from kcode.history import History
from kcode.loop import RunningTurn
from kcode.mcp.servers import ToolServers
from kcode.messages import Message
from kcode.model import ChatModel, Sampling, ToolSpec
from kcode.own_command import Unasked, own_command, with_shell
from kcode.profiles import Profile
from kcode.steps import Driver, Steps
from kcode.swarm import Swarm
from kcode.tools.pictures import show_named
from kcode.tools.tool import Tool
from kcode.transcript import Record, Transcript, Turn, TurnEnd, utc_now
from kcode.turn import Emit, Limits, Tree
from kcode.weights import Breakdown, weigh
from kcode_sandbox.sandbox import FileStat, Sandbox

log = logging.getLogger(__name__)


class Trees(Tree, Protocol):
    """The snapshots that a session takes, and may let go of when it ends."""

    async def prune(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a session works with. The session owns model and sandbox and closes them."""

    model: ChatModel
    sandbox: Sandbox
    tools: tuple[Tool[BaseModel], ...]
    specs: tuple[ToolSpec, ...]
    profile: Profile
    limits: Limits
    sampling: Sampling
    driver: Driver
    approval: Approval
    checkpoints: Trees | None
    grants: Grants | None = None
    late: deque[str] = field(default_factory=deque)
    """What came up meanwhile and the user is to know; told with the next event."""
    notices: tuple[Notice, ...] = ()
    """What the user is to know before the first turn."""
    commands: tuple[CustomCommand, ...] = ()
    """Those of the user and of the repository."""
    servers: ToolServers | None = None
    swarm: Swarm | None = None


class Session:
    """An open conversation over one workspace. One turn at a time; all calls from one event loop."""

    def __init__(self, equipment: Equipment, transcript: Transcript, context: Context) -> None:
        self._equipment = equipment
        self._transcript = transcript
        self._context = context
        self._history = History(transcript, context, equipment.checkpoints)
        self._compaction = Compaction(context, led=equipment.profile.guided)
        self._inbox: deque[str] = deque()
        self._running: RunningTurn | None = None
        self.notices: Sequence[Notice] = equipment.notices
        self.commands = equipment.commands
        """What a message may begin with, `/NAME`; `submit` puts the text in its place."""
        self.list_files: Callable[[], Awaitable[Sequence[FileStat]]] = equipment.sandbox.list_files
        """The files of the workspace that git does not ignore."""
        self.swarm = equipment.swarm
        """Its sub-agents; None where it can have none."""

    @property
    def id(self) -> str:
        return self._transcript.header.session_id

    @property
    def transcript_path(self) -> Path:
        return self._transcript.path

    @property
    def records(self) -> Sequence[Record]:
        """What counts of the transcript, oldest first: with results' displays, for showing a resumed session."""
        return self._transcript.active

    @property
    def messages(self) -> tuple[Message, ...]:
        return self._context.messages

    @property
    def model_name(self) -> str:
        return self._equipment.model.name

    @property
    def profile(self) -> Profile:
        return self._equipment.profile

    @property
    def context_limit(self) -> int | None:
        return self._context.limit_for(self._equipment.model)

    @property
    def context_used(self) -> int:
        """Tokens of the conversation as the model last counted them."""
        return self._context.used_tokens

    async def count_context(self) -> None:
        """Bring `context_used` up to date: a request to the model, which may be at work meanwhile."""
        try:
            await self._context.count(self._equipment.model, self._equipment.specs)
        except KcodeError as error:
            # Whatever is wrong with the model, the next step says it.
            log.debug("the context was not counted: %s", error)

    async def context_breakdown(self) -> Breakdown:
        """What the next prompt is made of. Raises what the model's counting raises."""
        model, specs = self._equipment.model, self._equipment.specs
        return await weigh(model, self.messages, specs, await self._context.fill(model, specs, EXACTLY))

    @property
    def sandbox_description(self) -> str:
        return self._equipment.sandbox.description

    @property
    def is_busy(self) -> bool:
        """Whether a turn is running."""
        return self._running is not None

    @property
    def approval_mode(self) -> ApprovalMode:
        return self._equipment.approval.mode

    def set_approval_mode(self, mode: ApprovalMode) -> None:
        """In force from the next call on."""
        self._equipment.approval.mode = mode

    async def start(self) -> None:
        """Make the model ready. Raises StartError; `submit` does it as well, so this only brings the wait forward."""
        await self._equipment.model.start()

    async def submit(self, text: str, *, as_command: bool = False) -> AsyncGenerator[Event, None]:
        """One turn; the last event is its TurnFinished. Closing the generator interrupts the turn.

        `/compact [what to keep]` is a turn that compacts the conversation. `as_command`: the user runs `text` in the session's
        shell, unasked; the model reads of it with the next message.

        Raises StartError before the first event when the model cannot be made ready, which a command does not need. What
        happened is in the transcript whichever way this ends.
        """
        assert self._running is None, "a turn is running; steer it or wait for its end"
        if not as_command:
            await self.start()
        number = sum(1 for record in self._transcript.records if isinstance(record, Turn)) + 1
        self._transcript.append(Turn(number, f"!{text}" if as_command else text, utc_now()))
        if as_command:
            # Pictures that a command names are not for the model.
            turn = RunningTurn(number, "", own_command(text, self._context), partial(self._open_steps, is_own=True))
        else:
            keep = what_to_keep(text)
            driver = self._equipment.driver if keep is None else self._compaction.asked(keep)
            turn = RunningTurn(number, expand(text, self.commands), driver, self._open_steps)
        self._running = turn
        ended = False
        try:
            async with aclosing(turn.events()) as events:
                async for event in events:
                    if isinstance(event, TurnFinished):
                        await self._history.settle()
                        self._transcript.append(_end_of(event))
                        ended = True
                    while self._equipment.late:
                        yield Notice("warning", self._equipment.late.popleft())
                    yield event
        finally:
            self._running = None
            if not ended:
                await self._history.settle()
                self._transcript.append(_end_of(turn.finished))
            if self._equipment.grants is not None:
                await self._equipment.grants.end_turn()

    def steer(self, text: str) -> bool:
        """Say something to the running turn: the model reads it after the current step. False when no turn is running."""
        if self._running is None:
            return False
        self._inbox.append(text)
        return True

    def interrupt(self) -> None:
        """End the running turn soon; its TurnFinished says "interrupted". Without a turn it does nothing."""
        if self._running is not None:
            self._running.interrupt()

    @property
    def equipment(self) -> Equipment:
        """What it works with; it stays the session's."""
        return self._equipment

    @property
    def history(self) -> History:
        """Going back and forward; only while no turn runs."""
        return self._history

    async def diff(self, *, last_turn: bool = False) -> str:
        """What the session (or its last turn) changed, as a unified diff; "" for nothing."""
        return await self._history.diff(last_turn=last_turn)

    async def undo(self) -> str:
        """Take the last turn back, its changes and its messages; one line that says what was done. `history.redo` undoes it."""
        assert self._running is None, "interrupt the turn before undoing it"
        return await self._history.undo()

    async def close(self) -> None:
        """End the sandbox and everything in it, let go of the model and the transcript. Idempotent."""
        self.interrupt()
        try:
            if self._equipment.servers is not None:
                await self._equipment.servers.close()
            await self._equipment.sandbox.close()
            if self._equipment.checkpoints is not None:
                await self._equipment.checkpoints.prune()
        finally:
            await self._equipment.model.close()
            self._transcript.close()

    def _open_steps(self, emit: Emit, *, is_own: bool = False) -> Steps:
        equipment = self._equipment
        if equipment.swarm is not None:
            equipment.swarm.begin_turn(emit)
        return Steps(
            model=equipment.model,
            tools=with_shell(equipment.tools, equipment.sandbox, equipment.model) if is_own else equipment.tools,
            specs=equipment.specs,
            approval=Unasked() if is_own else equipment.approval,
            journal=self._context,
            tree=equipment.checkpoints,
            limits=equipment.limits,
            sampling=equipment.sampling,
            session_id=self.id,
            inbox=self._inbox,
            emit=emit,
            show=partial(show_named, equipment.sandbox, equipment.model),
            compactor=self._compaction,
        )


def _end_of(event: TurnFinished) -> TurnEnd:
    return TurnEnd(event.turn, event.status, event.reason, event.result, event.usage)
