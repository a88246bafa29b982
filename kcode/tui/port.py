"""What the terminal interface needs from the rest of kcode; the command line gives it.

The interface reads events and calls these; it knows neither the engine nor the disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    # Their modules take long to import, and the screen opens before they are needed.
    from kcode.approval import ApprovalMode, Question, Reply
    from kcode.events import AgentState, Event, Notice
    from kcode.transcript import Record
    from kcode.weights import Breakdown

    Ask = Callable[[Question], Awaitable[Reply]]


class Agents(Protocol):
    """The sub-agents of a session."""

    @property
    def agents(self) -> Sequence[AgentState]:
        """Those of the present turn, or of the last one."""
        ...

    def stop(self, number: int) -> bool:
        """End one soon. False when none of that number is at work or waits."""
        ...


class RewindPoint(Protocol):
    """A place to go back to: before a message of the user ("turn") or a step of the model ("step")."""

    @property
    def mark(self) -> int: ...

    @property
    def kind(self) -> str: ...

    @property
    def title(self) -> str: ...


class History(Protocol):
    """Going back and forward; not during a turn. Each tells in one line what was done and may raise KcodeError."""

    def points(self) -> Sequence[RewindPoint]:
        """Where one can go back to, the latest first."""
        ...

    async def rewind(self, mark: int) -> str: ...

    async def redo(self) -> str:
        """Undo the last rewind or undo."""
        ...

    def fork(self) -> str:
        """The id of a new session with everything of this one."""
        ...

    def export(self, path: Path) -> str:
        """Write the session there; the ending names the format."""
        ...


class NamedFile(Protocol):
    """A file of the workspace; `path` is relative to it."""

    @property
    def path(self) -> str: ...


class ChatSession(Protocol):
    """One open conversation."""

    @property
    def id(self) -> str: ...

    @property
    def model_name(self) -> str: ...

    @property
    def context_limit(self) -> int | None: ...

    @property
    def context_used(self) -> int:
        """Tokens of the conversation as the model last counted them."""
        ...

    async def count_context(self) -> None:
        """Let the model count anew; it stays as it was where the model cannot."""
        ...

    async def context_breakdown(self) -> Breakdown:
        """What the next prompt is made of. Raises KcodeError."""
        ...

    @property
    def sandbox_description(self) -> str: ...

    @property
    def swarm(self) -> Agents | None:
        """None where there can be none."""
        ...

    @property
    def notices(self) -> Sequence[Notice]:
        """What is to be known before the first turn."""
        ...

    @property
    def records(self) -> Sequence[Record]:
        """What was said and done so far, oldest first, less what was taken back."""
        ...

    @property
    def approval_mode(self) -> ApprovalMode: ...

    def set_approval_mode(self, mode: ApprovalMode) -> None:
        """In force from the next call on."""
        ...

    async def start(self) -> None:
        """Make the model ready, which may take long; idempotent, not to be run twice at once. Raises KcodeError."""
        ...

    def submit(self, text: str, *, as_command: bool = False) -> AsyncIterator[Event]:
        """One turn. The last event is TurnFinished unless it raises KcodeError.

        `as_command`: the user runs `text` in the session's shell; that needs no model, and asks nobody.
        """
        ...

    def interrupt(self) -> None:
        """End the running turn soon; its TurnFinished says "interrupted". Without a turn it does nothing."""
        ...

    @property
    def list_files(self) -> Callable[[], Awaitable[Sequence[NamedFile]]]:
        """The files of the workspace that git does not ignore, the last changed first. Raises SandboxError."""
        ...

    @property
    def commands(self) -> Sequence[WrittenCommand]:
        """Those of the user and of the repository: a message may begin with their name."""
        ...

    async def diff(self) -> str:
        """What the session changed, as a unified diff; "" for nothing."""
        ...

    @property
    def history(self) -> History: ...

    async def undo(self) -> str:
        """Take back the last turn, its changes and its messages; one line that says what was done. Not during a turn."""
        ...

    async def close(self) -> None: ...


class WrittenCommand(Protocol):
    """A command that somebody wrote; `name` without the slash, `source` its file."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def source(self) -> str: ...


class PastSession(Protocol):
    """A line of the session picker."""

    @property
    def id(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def when(self) -> str: ...


class Sessions(Protocol):
    """Opens conversations. May be slow: it starts the sandbox and the engine."""

    async def open(self, resume_id: str | None, model: str | None, ask: Ask) -> ChatSession:
        """A new session, the one named, or with "" the last; `model` None takes the configured one. Raises KcodeError."""
        ...

    async def recall(self, resume_id: str) -> Sequence[Record]:
        """What `open` would bring back, for showing it while the session opens; nothing where it cannot be read."""
        ...

    def trust(self) -> str:
        """Let the folder's own configuration count from the next session on; one line that says what was done."""
        ...

    async def past(self) -> Sequence[PastSession]:
        """Sessions of this folder, newest first."""
        ...


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """A model that can be used or pulled. `source` says where it comes from, in words."""

    name: str
    summary: str
    size_bytes: int
    source: str
    installed: bool
    is_default: bool


@dataclass(frozen=True, slots=True)
class PullProgress:
    """`total_bytes` is 0 while unknown; `doing` is a short phrase such as "downloading"."""

    done_bytes: int
    total_bytes: int
    doing: str


class PullCancelled(Exception):
    """Raised out of `on_progress` to stop a pull; what was fetched stays for the next try."""


class ModelStore(Protocol):
    """The models of this machine. The calls block; the interface makes them in a thread."""

    def offers(self) -> Sequence[ModelOffer]: ...

    def pull(self, name: str, on_progress: Callable[[PullProgress], None]) -> None:
        """Fetch one model. Raises KcodeError; an exception out of `on_progress` stops it and travels."""
        ...


@dataclass(frozen=True, slots=True)
class Launch:
    """How the interface starts. `first_message` is sent as soon as the session is open.

    `approval_mode` is shown until the session tells its own; `needs_model` begins with the choice of a model.
    """

    workspace: str
    approval_mode: str = "ask"
    resume_id: str | None = None
    first_message: str = ""
    needs_model: bool = False
    notifications: Literal["on", "bell", "off"] = "on"
