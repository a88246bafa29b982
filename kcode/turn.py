"""What a turn is made of: its limits, how a step is asked, what a call came to, how the turn ended, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kcode.approval import Before, Verdict, nothing_before
from kcode.events import Display, Event, TurnStatus
from kcode.messages import Message, ToolCall, ToolResult
from kcode.model import ChatModel, Sampling, ToolSpec, Usage
from kcode.tools.tool import Access


@dataclass(frozen=True, slots=True)
class Fill:
    """How full the context is: `tokens` of the next prompt as the model counts them, else as estimated."""

    tokens: int
    limit: int | None
    is_exact: bool

    def fits(self, room: int) -> bool:
        """Whether `room` tokens more have their place."""
        return self.limit is None or self.tokens + room <= self.limit

    @property
    def words(self) -> str:
        """ "about 1200 tokens and the context 8192"."""
        return f"{'' if self.is_exact else 'about '}{self.tokens} tokens and the context {self.limit}"


class Journal(Protocol):
    """Where the conversation is kept. What was added is on disk when the method returns."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model sees: it only grows, except by `rewind`."""
        ...

    @property
    def call_count(self) -> int:
        """Calls in the conversation so far; numbers the ids of the harness's own calls."""
        ...

    def add(self, message: Message, usage: Usage | None = None) -> None: ...

    def add_result(self, result: ToolResult, display: Display, duration_s: float) -> None: ...

    def add_checkpoint(self, snapshot: str) -> None: ...

    def mark(self) -> int: ...

    def rewind(self, mark: int) -> None: ...

    async def fill(self, model: ChatModel, tools: tuple[ToolSpec, ...], room: int) -> Fill:
        """How full the context is. Counted exactly unless `room` tokens more surely have their place."""
        ...


class Tree(Protocol):
    """Snapshots of the workspace (checkpoint.py). All three raise CheckpointFailed."""

    async def snapshot(self) -> str: ...

    async def restore(self, snapshot: str) -> None: ...

    async def diff(self, snapshot: str) -> str: ...


class Approver(Protocol):
    async def decide(self, call: ToolCall, access: Access, summary: str, before: Before = nothing_before) -> Verdict:
        """`before` gives the text that the call replaces; it is awaited only when a person is asked."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one turn; None is no bound. `tokens` counts sampled tokens, `answer_tokens` those of one step."""

    steps: int | None = None
    tokens: int | None = None
    time_s: float | None = None
    answer_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """How one step is asked; the defaults are the profile's. `sampling` replaces the profile's as a whole.

    `grammar`, `prefix`, `stop`, `draft` and `tool_choice` are those of ModelRequest. The tools on offer are the same in every
    step, because they stand at the head of the prompt; bind what a call may hold with `grammar` instead. A driver that makes all
    calls itself offers none, in all of its steps. What is asked `silent` is not streamed to the person: it is no answer to them.
    """

    tool_choice: str = "auto"
    grammar: str | None = None
    prefix: str = ""
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None
    offer_tools: bool = True
    draft: str = ""
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Called:
    """A finished call. `result.text` is exactly what the model reads; `changed` names files known to be changed.

    `is_refused`: it did not run because a person or a rule did not let it; who makes calls by itself takes that as a no.
    """

    call: ToolCall
    result: ToolResult
    display: Display
    ends_turn: bool = False
    changed: tuple[str, ...] = ()
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a turn ended: see TurnFinished. An empty `result` means the last visible text of the model."""

    status: TurnStatus
    reason: str
    result: str = ""
    attempts: int = 1


class LimitReached(Exception):
    """A limit of the turn; the message says which, with the numbers."""


class LoopFound(Exception):
    """The model repeats itself without effect; the message names the call."""


Emit = Callable[[Event], None]
