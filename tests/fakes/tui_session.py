"""A session that plays a script, a store of models that copies nothing, for tests and for looking at the interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kcode.approval import ApprovalMode, Question, Reply
from kcode.errors import KcodeError
from kcode.events import Event, Notice, TurnFinished, TurnStarted
from kcode.model import Usage
from kcode.transcript import Record, Turn
from kcode.tui.port import Agents, ModelOffer, PullProgress, WrittenCommand
from kcode.weights import Breakdown, Kind, Piece

if TYPE_CHECKING:
    from kcode.tui.port import Ask


@dataclass(frozen=True)
class NamedFile:
    path: str


COUNTED_AFTER_UNDO = 321


@dataclass(frozen=True)
class Pause:
    """Wait this long; an interrupt ends it."""

    seconds: float


@dataclass(frozen=True)
class Hold:
    """Wait until interrupted or released."""


@dataclass(frozen=True)
class Fail:
    error: KcodeError


Step = Event | Pause | Hold | Fail | Question
Script = Callable[[str], Sequence[Step]]


@dataclass
class ScriptedSession:
    """Plays `script(text)` for every message. Replies to questions are kept in `replies`."""

    script: Script
    ask: Ask
    id: str = "20260101-demo"
    model_name: str = "qwen2.5-coder-1.5b"
    context_limit: int | None = 32768
    context_used: int = 0
    sandbox_description: str = "bubblewrap · workspace-write · network off"
    notices: tuple[Notice, ...] = ()
    commands: tuple[WrittenCommand, ...] = ()
    swarm: Agents | None = None
    files: Sequence[str] = ()
    records: list[Record] = field(default_factory=list)
    approval_mode: ApprovalMode = "ask"
    loaded: asyncio.Event | None = None
    patch: str = ""
    replies: list[Reply] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    undone: int = 0
    closed: bool = False
    release: asyncio.Event = field(default_factory=asyncio.Event)
    _interrupted: asyncio.Event = field(default_factory=asyncio.Event)

    async def context_breakdown(self) -> Breakdown:
        heavy = (Piece("results", "result of read calc.py", "", 4000),)
        kinds: tuple[tuple[Kind, int], ...] = (("system", 1000), ("user", 3000), ("results", 4000))
        return Breakdown(8000, self.context_limit, True, kinds, heavy)

    async def submit(self, text: str, *, as_command: bool = False) -> AsyncIterator[Event]:
        self.said.append(f"$ {text}" if as_command else text)
        turn = len(self.said)
        self.records.append(Turn(turn, text, ""))
        self._interrupted.clear()
        yield TurnStarted(turn)
        ended = False
        for step in self.script(text):
            if self._interrupted.is_set():
                break
            match step:
                case Pause(seconds=seconds):
                    await self._wait(self._interrupted.wait(), asyncio.sleep(seconds))
                case Hold():
                    await self._wait(self._interrupted.wait(), self.release.wait())
                case Fail(error=error):
                    raise error
                case Question():
                    await self._question(step)
                case TurnFinished():
                    ended = True
                    yield step
                case _:
                    yield step
            await asyncio.sleep(0)
        if not ended:
            status = "interrupted" if self._interrupted.is_set() else "finished"
            reason = "by the user" if status == "interrupted" else ""
            yield TurnFinished(turn, status, reason, "", Usage(4000, 3500, 120), 2, 3.2)

    async def list_files(self) -> Sequence[NamedFile]:
        return [NamedFile(path) for path in self.files]

    async def start(self) -> None:
        if self.loaded is not None:
            await self.loaded.wait()

    async def count_context(self) -> None:
        """The model has nothing to add to what the events say, but for what was taken back."""
        if self.undone:
            self.context_used = COUNTED_AFTER_UNDO

    def set_approval_mode(self, mode: ApprovalMode) -> None:
        self.approval_mode = mode

    def interrupt(self) -> None:
        self._interrupted.set()

    async def diff(self) -> str:
        return self.patch

    @property
    def history(self) -> ScriptedHistory:
        return ScriptedHistory(self)

    async def undo(self) -> str:
        self.undone += 1
        self.context_used = 0
        self.records.clear()
        return "restored 1 file: src/slug.py"

    async def close(self) -> None:
        self.closed = True

    async def _question(self, question: Question) -> None:
        asking = asyncio.ensure_future(self.ask(question))
        interrupted = asyncio.ensure_future(self._interrupted.wait())
        await asyncio.wait([asking, interrupted], return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            self.replies.append(asking.result())
        asking.cancel()
        interrupted.cancel()

    async def _wait(self, *awaitables: Coroutine[object, object, object]) -> None:
        tasks = [asyncio.ensure_future(item) for item in awaitables]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


@dataclass(frozen=True)
class Point:
    mark: int
    kind: str
    title: str


@dataclass(frozen=True)
class ScriptedHistory:
    """Each message said is a point; going back forgets nothing."""

    session: ScriptedSession

    def points(self) -> list[Point]:
        return [Point(number, "turn", text) for number, text in enumerate(self.session.said)][::-1]

    async def rewind(self, mark: int) -> str:
        return f"took back {self.session.said[mark]!r}: it changed no files"

    async def redo(self) -> str:
        return "there is nothing to bring back"

    def fork(self) -> str:
        return f"{self.session.id}-copy"

    def export(self, path: Path) -> str:
        return f"written to {path}"


@dataclass(frozen=True)
class Past:
    id: str
    title: str
    when: str


@dataclass
class ScriptedSessions:
    """Opens ScriptedSessions and keeps them in `opened`."""

    script: Script
    problem: KcodeError | None = None
    listed: Sequence[Past] = ()
    history: Sequence[Record] = ()
    loaded: asyncio.Event | None = None
    patch: str = ""
    files: Sequence[str] = ()
    delay_s: float = 0.0
    may_open: asyncio.Event | None = None
    commands: tuple[WrittenCommand, ...] = ()
    opened: list[ScriptedSession] = field(default_factory=list)
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)

    async def open(self, resume_id: str | None, model: str | None, ask: Ask) -> ScriptedSession:
        self.asked.append((resume_id, model))
        await asyncio.sleep(self.delay_s)
        if self.may_open is not None:
            await self.may_open.wait()
        if self.problem is not None:
            raise self.problem
        records = list(self.history) if resume_id else []
        session = ScriptedSession(self.script, ask, records=records, patch=self.patch, loaded=self.loaded)
        session.commands = self.commands
        session.files = self.files
        if model:
            session.model_name = model
        self.opened.append(session)
        return session

    async def recall(self, resume_id: str) -> Sequence[Record]:
        return list(self.history)

    def trust(self) -> str:
        return "trusted"

    async def past(self) -> Sequence[Past]:
        return self.listed


OFFERS = (
    ModelOffer(
        "qwen2.5-coder-1.5b",
        "small and quick; fixes small bugs on two cores",
        1_117_320_736,
        "Hugging Face Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        False,
        True,
    ),
    ModelOffer("qwen3-30b-a3b", "for 24 GB of memory and more", 18_556_689_568, "Hugging Face Qwen/Qwen3-30B-A3B", False, False),
)


@dataclass
class ScriptedStore:
    """Reports progress in `steps` pieces. `gate` is called before each, in the pulling thread."""

    listed: Sequence[ModelOffer] = OFFERS
    steps: int = 20
    problem: KcodeError | None = None
    gate: Callable[[int], None] = lambda step: None
    pulled: list[str] = field(default_factory=list)

    def offers(self) -> Sequence[ModelOffer]:
        return self.listed

    def pull(self, name: str, on_progress: Callable[[PullProgress], None]) -> None:
        total = next(offer.size_bytes for offer in self.listed if offer.name == name)
        for step in range(self.steps):
            self.gate(step)
            on_progress(PullProgress(total * step // self.steps, total, "downloading"))
        if self.problem is not None:
            raise self.problem
        self.pulled.append(name)
