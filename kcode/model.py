"""The seam to a model: one request in, a stream of events out.

Implementations: models/local.py (our engine), models/http.py (any OpenAI-style server), models/scripted.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

from kcode.messages import Message

Finish = Literal["stop", "tool_calls", "length"]
JsonSchema = Mapping[str, object]
SEEDS = 1 << 31
STEP_STRIDE = 7919
"""Larger than the number of sub-agents, whose seeds follow the session's one by one."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What the model is told of one tool. `schema` is the JSON schema of the arguments object."""

    name: str
    description: str
    schema: JsonSchema


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. None leaves the server's or the model's default in force.

    `varies` says that the seed is a session's, of which each step makes one of its own: with one seed for all, every answer would
    begin with the same draw.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    varies: bool = False

    def of_step(self, messages: int) -> Sampling:
        """For a request of so many messages; the same whenever that step is asked again."""
        if not self.varies:
            return self
        return replace(self, varies=False, seed=None if self.seed is None else (self.seed + messages * STEP_STRIDE) % SEEDS)


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One step's question.

    `messages` only ever grows between requests of one session. `tool_choice` is "auto", "none", "required" or a tool's
    name. `grammar` is a Lark grammar (llguidance dialect) that binds the whole answer; models that cannot honour it
    raise ModelError rather than ignore it. `prefix` is text the answer must start with (part of the answer). `priority`
    above 0 is background work. `session_id` groups requests for cache accounting. `draft` is text that the answer is likely to
    resemble, such as the code that is to be changed: it makes the answer faster and changes nothing of it.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    tool_choice: str = "auto"
    grammar: str | None = None
    prefix: str = ""
    stop: tuple[str, ...] = ()
    priority: int = 0
    session_id: str = ""
    draft: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one step; `cached_tokens` of `prompt_tokens` were not computed again."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """`done` of `total` prompt tokens are in the cache; `cached` of them were there before."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a call being written: for display only; `name` is set on the first piece."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The last event of every stream: the whole assistant message, why it ended, what it cost.

    `decode_s` is the time from the first sampled token to the last, 0 when unknown.
    """

    message: Message
    finish: Finish
    usage: Usage
    decode_s: float = 0.0


ModelEvent = PrefillProgress | TextDelta | ThinkingDelta | CallDelta | Completed


class ChatModel(Protocol):
    """A model that answers. One instance may serve several streams at once."""

    @property
    def name(self) -> str: ...

    @property
    def context_limit(self) -> int | None:
        """Tokens of prompt and answer together; None when the server does not say."""
        ...

    @property
    def binds_answers(self) -> bool:
        """Whether a request may carry a grammar and a prefix."""
        ...

    @property
    def sees(self) -> bool | None:
        """Whether messages may have pictures; None when nobody knows. Asked once the model is ready."""
        ...

    async def start(self) -> None:
        """Make the model ready (start or find the engine). Raises StartError; idempotent."""
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield events, the last one a Completed. `aclose` cancels the request at once.

        Raises ModelError (after retries where those are safe), EngineDied when the local engine ended.
        """
        ...

    async def count_tokens(self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...] = ()) -> int | None:
        """Prompt tokens of a request as the model would count them; None when it cannot say."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token the model would rather have, or nearly so, in a place of a scored text."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How likely the model held one token of a text: `start` and `length` in bytes, `logprob` a natural logarithm."""

    start: int
    length: int
    logprob: float
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class ScoredText:
    """The tokens that reach beyond the byte asked for, in order."""

    tokens: tuple[TokenScore, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Continuation:
    text: str
    usage: Usage


@runtime_checkable
class TextModel(Protocol):
    """A model that also reads and continues plain text. Only our own engine offers it."""

    async def score(self, text: str, start: int, alternatives: int) -> ScoredText:
        """How likely each token of `text` from byte `start` on was, with the likeliest tokens in its place, best first.

        Raises ModelError, EngineDied.
        """
        ...

    async def continue_text(self, text: str, stop: str, max_tokens: int, draft: str = "") -> Continuation:
        """The likeliest continuation, up to `stop` (not included) or `max_tokens`; `draft` as in ModelRequest.

        Raises ModelError, EngineDied.
        """
        ...


@runtime_checkable
class TextCounter(Protocol):
    """A model that counts the tokens of any texts."""

    async def count_texts(self, texts: tuple[str, ...]) -> tuple[int, ...] | None:
        """Tokens of each text by itself; None when it cannot say. Raises EngineDied."""
        ...
