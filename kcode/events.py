"""The closed union of what a turn says. The loop yields these; screens, headless and the transcript read them.

Order within a turn: TurnStarted, then per step: StepStarted, any of Prefill/TextPiece/ThinkingPiece/CallPiece, StepFinished,
then per call: CallStarted, any number of CallOutput, AgentState and SandboxViolation, CallFinished (those of calls that run at
the same time are mixed); at the end exactly one TurnFinished, also after an interrupt.
ContextCompacted comes between steps; Notice may occur anywhere between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kcode.messages import Message, ToolCall, ToolResult
from kcode.model import Finish, Usage
from kcode_sandbox.violation import Violation

TurnStatus = Literal["finished", "limit", "loop", "interrupted", "error"]
NoticeLevel = Literal["info", "warning", "error"]
NoteAuthor = Literal["model", "kcode"]


@dataclass(frozen=True, slots=True)
class PlainDisplay:
    """Text for a person: the output of a command, a listing."""

    text: str


@dataclass(frozen=True, slots=True)
class DiffDisplay:
    """An edit of one file: whole old and new text ("" when created or deleted)."""

    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class TestsDisplay:
    """Counts of a test run; `text` is the failing tests' essential output."""

    __test__ = False

    command: str
    passed: int
    failed: int
    text: str


Display = PlainDisplay | DiffDisplay | TestsDisplay


@dataclass(frozen=True, slots=True)
class TurnStarted:
    turn: int


@dataclass(frozen=True, slots=True)
class StepStarted:
    step: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompt tokens computed so far in this step; `rate` in tokens per second, 0 while unknown."""

    done: int
    total: int
    cached: int
    rate: float


@dataclass(frozen=True, slots=True)
class TextPiece:
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingPiece:
    text: str


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A call while it is being written; for display only."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class StepFinished:
    """The assistant message of the step, already in the transcript."""

    step: int
    message: Message
    finish: Finish
    usage: Usage
    duration_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class CallStarted:
    """`summary` is one line for a person, e.g. "read src/a.py:10-40"."""

    call: ToolCall
    summary: str


@dataclass(frozen=True, slots=True)
class CallOutput:
    """Live output of a running call, as it comes."""

    call_id: str
    text: str


@dataclass(frozen=True, slots=True)
class CallFinished:
    call: ToolCall
    result: ToolResult
    display: Display
    duration_s: float


@dataclass(frozen=True, slots=True)
class SandboxViolation:
    """The sandbox stopped something of the call, whose result says so to the model; comes before the call's CallFinished."""

    violation: Violation
    call_id: str


AgentStatus = Literal["waiting", "working", "finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class AgentState:
    """How a sub-agent stands, each time that changes: between the CallStarted and the CallFinished of the `task` it works for.

    `agent` is its number in the session, `status` begins with "waiting", `steps` counts its answers, `doing` is the summary of
    its last call or, once it has ended, why. What it changed comes over later, when its siblings have ended as well.
    """

    agent: int
    description: str
    status: AgentStatus
    steps: int = 0
    doing: str = ""

    @property
    def line(self) -> str:
        """For a person, where there is room for one line."""
        return " · ".join(filter(None, [f"agent {self.agent}", self.description, self.status, f"step {self.steps}", self.doing]))


@dataclass(frozen=True, slots=True)
class Notice:
    level: NoticeLevel
    text: str


@dataclass(frozen=True, slots=True)
class ContextCompacted:
    """The conversation began anew with the user's messages and `note`; comes between two steps.

    Tokens of the next prompt without and with it. `by` says who wrote the note; `is_automatic`: nobody asked for it.
    """

    before_tokens: int
    after_tokens: int
    by: NoteAuthor
    is_automatic: bool
    note: str


OWN_COMMAND = "the user's own command ran"
"""Why a turn ended that was no more than such a command."""


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """`result` is the last visible text of the model; `reason` says in one line why the turn ended.

    `steps` counts the model's answers and each repair that came of its reading alone. `attempts` counts the repairs that tests
    judged, 1 where nobody counted.
    """

    turn: int
    status: TurnStatus
    reason: str
    result: str
    usage: Usage
    steps: int
    duration_s: float
    attempts: int = 1


Event = (
    TurnStarted
    | StepStarted
    | Prefill
    | TextPiece
    | ThinkingPiece
    | CallPiece
    | StepFinished
    | CallStarted
    | CallOutput
    | CallFinished
    | SandboxViolation
    | AgentState
    | ContextCompacted
    | Notice
    | TurnFinished
)
