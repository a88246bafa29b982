"""The Python API: one conversation with kcode in a program of your own. docs/api.md shows how it is used.

async with Session("path/to/repository") as session:
    result = await session.run("the login test fails")
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kcode.approval import ApprovalMode, Asker
from kcode.errors import StartError
from kcode.events import AgentState, Event, Notice, TurnFinished, TurnStatus
from kcode.messages import Message
from kcode.model import Usage
from kcode.opening import Sessions
from kcode.paths import check_workspace, find_paths
from kcode.session import Session as Conversation
from kcode.settings import Value, load_settings


@dataclass(frozen=True, slots=True)
class Result:
    """How a turn ended: `text` is the model's last word, `diff` what the turn changed ("" for nothing).

    `status` is "finished", "limit", "loop", "interrupted" or "error"; `reason` says why in one line.
    """

    text: str
    status: TurnStatus
    reason: str
    diff: str
    steps: int
    usage: Usage
    duration_s: float
    session_id: str

    @property
    def ok(self) -> bool:
        return self.status == "finished"


class Session:
    """A conversation over one folder, open within `async with`. One turn at a time, all calls from one event loop.

    `settings` are those of docs and `config.toml` by name; they win over the user's own, `model`, `base_url` and `approval_mode`
    over both. `ask` is awaited with each question of the mode "ask"; without it a question is a denial. `resume` is the beginning
    of an earlier session's id, or "" for the last one of that folder. Entering raises StartError (ConfigError, ModelNotFound,
    SandboxUnavailable).
    """

    def __init__(
        self,
        workspace: str | os.PathLike[str] = ".",
        *,
        model: str | None = None,
        base_url: str | None = None,
        approval_mode: ApprovalMode | None = None,
        ask: Asker | None = None,
        resume: str | None = None,
        settings: Mapping[str, Value] | None = None,
    ) -> None:
        self._workspace = Path(workspace)
        self._flags: dict[str, Value] = {
            **(settings or {}),
            **({"model": model} if model is not None else {}),
            **({"base_url": base_url} if base_url is not None else {}),
            **({"approval_mode": approval_mode} if approval_mode is not None else {}),
        }
        self._ask = ask
        self._resume = resume
        self._open: Conversation | None = None

    async def __aenter__(self) -> Session:
        paths = find_paths()
        settings = load_settings(paths.config_file, os.environ, self._flags)
        # As headless, or as on a screen where somebody answers.
        mode: ApprovalMode = "auto" if self._ask is None else "ask"
        sessions = Sessions(settings, check_workspace(self._workspace), paths, mode)
        conversation = await sessions.open(self._resume, None, self._ask)
        try:
            await conversation.start()
        except BaseException:
            await conversation.close()
            raise
        self._open = conversation
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        conversation, self._open = self._open, None
        if conversation is not None:
            await conversation.close()

    @property
    def id(self) -> str:
        return self._conversation.id

    @property
    def transcript(self) -> Path:
        """The file that holds everything of this session."""
        return self._conversation.transcript_path

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model sees."""
        return self._conversation.messages

    @property
    def notices(self) -> Sequence[Notice]:
        """What is to be known before the first turn, such as a project's configuration that is not trusted."""
        return self._conversation.notices

    def submit(self, text: str) -> AsyncGenerator[Event, None]:
        """One turn, event by event (kcode/events.py has them all); the last is its TurnFinished.

        Closing the generator interrupts the turn.
        """
        return self._conversation.submit(text)

    async def run(self, text: str) -> Result:
        """One turn to its end."""
        finished: TurnFinished | None = None
        async with aclosing(self.submit(text)) as events:
            async for event in events:
                if isinstance(event, TurnFinished):
                    finished = event
        assert finished is not None
        diff = await self._conversation.diff(last_turn=True)
        return Result(
            finished.result,
            finished.status,
            finished.reason,
            diff,
            finished.steps,
            finished.usage,
            finished.duration_s,
            self.id,
        )

    def steer(self, text: str) -> bool:
        """Say something to the running turn, which reads it after its current step. False when none is running."""
        return self._conversation.steer(text)

    @property
    def agents(self) -> tuple[AgentState, ...]:
        """How the sub-agents of the present or the last turn stand."""
        swarm = self._conversation.swarm
        return () if swarm is None else swarm.agents

    def stop_agent(self, number: int) -> bool:
        """End one sub-agent soon, the others go on. False when none of that number is at work or waits."""
        swarm = self._conversation.swarm
        return swarm is not None and swarm.stop(number)

    def steer_agent(self, number: int, text: str) -> bool:
        """Say something to one sub-agent, which reads it after its present step. False when none of that number is at work."""
        swarm = self._conversation.swarm
        return swarm is not None and swarm.steer(number, text)

    def interrupt(self) -> None:
        """End the running turn soon; its TurnFinished says "interrupted"."""
        self._conversation.interrupt()

    async def diff(self) -> str:
        """What the whole session changed, as a unified diff."""
        return await self._conversation.diff()

    async def undo(self) -> str:
        """Take back the last turn, its changes and its messages; one line that says what was done."""
        return await self._conversation.undo()

    @property
    def _conversation(self) -> Conversation:
        if self._open is None:
            raise StartError("the session is not open; use it within `async with Session(...) as session:`")
        return self._open


def run(
    text: str,
    workspace: str | os.PathLike[str] = ".",
    *,
    model: str | None = None,
    base_url: str | None = None,
    approval_mode: ApprovalMode | None = None,
    resume: str | None = None,
    settings: Mapping[str, Value] | None = None,
) -> Result:
    """One turn in a session of its own, blocking: for scripts without an event loop. Arguments as for Session."""

    async def once() -> Result:
        session = Session(
            workspace, model=model, base_url=base_url, approval_mode=approval_mode, resume=resume, settings=settings
        )
        async with session:
            return await session.run(text)

    return asyncio.run(once())
