"""The seam to a model family's way of writing conversations: messages to token ids, token ids to text and calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kcode_backend.engine.request import SamplingParams
from kcode_backend.errors import BackendError

Role = Literal["system", "user", "assistant", "tool"]


class BadConversation(BackendError):
    """The messages or tools cannot be written in the model's format; the message names the value."""


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call in the history; `arguments` is JSON text as the model or a client wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message. `token_ids`, when set, are the sampled ids of an assistant message and rule over its text."""

    role: Role
    text: str
    calls: tuple[WrittenCall, ...] = ()
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ToolDeclaration:
    """A tool as the client declared it: `declared` is its whole JSON object, `schema` that of the arguments.

    `strict`: the request is to be refused rather than the schema enforced in part.
    """

    name: str
    schema: Mapping[str, object]
    declared: Mapping[str, object]
    strict: bool = False

    @property
    def json(self) -> str:
        return json.dumps(self.declared, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class TextOut:
    """Visible text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningOut:
    """Thinking that is no part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallOut:
    """A piece of call number `index` of this answer: the name comes whole with the first piece, then text of the arguments."""

    index: int
    name: str
    arguments: str


Output = TextOut | ReasoningOut | CallOut


class AnswerParser(Protocol):
    """Turns the tokens of one answer into pieces, as they come."""

    def push(self, token: int) -> list[Output]: ...

    def finish(self) -> list[Output]:
        """What was held back; the answer is over."""
        ...


@dataclass(frozen=True, slots=True)
class CallMarkers:
    """The tokens around a call and the text between them: `before` + name + `between` + arguments + `after`."""

    open_id: int
    close_id: int
    open_name: str
    close_name: str
    before: str
    between: str
    after: str


class ChatFormat(Protocol):
    """One family's format. Immutable."""

    @property
    def family(self) -> str: ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    @property
    def markers(self) -> CallMarkers | None:
        """How calls are marked; None when the family has no tokens for them: it is then offered no tools."""
        ...

    @property
    def sampling(self) -> SamplingParams:
        """What the family's makers recommend."""
        ...

    def prompt(self, messages: Sequence[ChatMessage], tools: Sequence[ToolDeclaration]) -> list[int]:
        """The ids up to where the answer begins. Appending messages appends ids. Raises BadConversation."""
        ...

    def answer_ids(self, text: str) -> list[int]:
        """Ids of text that the answer is made to start with; call markers in it become their tokens."""
        ...

    def parser(self, tools: Sequence[ToolDeclaration]) -> AnswerParser: ...
