"""What the model sees of a transcript, and whether it still fits."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kcode.events import Display, PlainDisplay
from kcode.messages import Image, Message, ToolCall, ToolResult
from kcode.messages import tool as tool_message
from kcode.model import ChatModel, ToolSpec, Usage
from kcode.transcript import Answered, Checkpoint, Compacted, Ran, Record, Redone, Rewind, Said, Transcript
from kcode.turn import Fill

ORPHAN_TEXT = "No result: kcode ended before this call did, so it may have run in part or not at all. Look before you repeat it."
# Code and JSON come to three to four characters per token; the low figure errs to the safe side.
CHARS_PER_TOKEN = 3
IMAGE_TOKENS = 1500
# Below this share of the limit an estimate is good enough and the model is not asked to count.
SURE_SHARE = 0.7
EXACTLY = 1 << 40
"""As the room asked for: always counted."""


def build(records: Sequence[Record]) -> list[Message]:
    """The messages of active records: a pure function, so a longer transcript gives a longer list with the same start."""
    messages: list[Message] = []
    for record in records:
        _extend(messages, record)
    return messages


def _extend(messages: list[Message], record: Record) -> None:
    if isinstance(record, Said):
        messages.append(record.message)
    elif isinstance(record, Answered):
        if messages and messages[-1].role == "tool":
            messages[-1] = tool_message(*messages[-1].results, record.result)
        else:
            messages.append(tool_message(record.result))
    elif isinstance(record, Compacted):
        messages[:] = record.messages


def orphans(messages: Sequence[Message]) -> list[ToolCall]:
    """Calls of the last step that have no result: the process ended between call and result."""
    answered: set[str] = set()
    for message in reversed(messages):
        if message.role == "tool":
            answered.update(result.call_id for result in message.results)
        elif message.role == "assistant":
            return [call for call in message.calls if call.id not in answered]
        else:
            return []
    return []


def estimate_tokens(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
    """A guess that is rather too high."""
    chars = sum(len(tool.name) + len(tool.description) + len(json.dumps(dict(tool.schema))) for tool in tools)
    tokens = 0
    for message in messages:
        chars += 16
        for part in message.parts:
            if isinstance(part, Image):
                tokens += IMAGE_TOKENS
            elif isinstance(part, ToolCall):
                chars += len(part.name) + len(part.arguments) + 32
            else:
                chars += len(part.text) + 8
                tokens += IMAGE_TOKENS * len(part.images) if isinstance(part, ToolResult) else 0
    return tokens + chars // CHARS_PER_TOKEN + 1


class Context:
    """The journal of a session: records go to the transcript, messages come out.

    `limit` is the context the user allows; the model's own limit holds as well.
    """

    def __init__(self, transcript: Transcript, limit: int | None) -> None:
        self._transcript = transcript
        self._limit = limit
        self._messages: list[Message] = []
        # Tokens of the first `known_messages` messages and the tools, as the model counted them.
        self._known_messages = 0
        self._known_tokens = 0
        self._counted_tokens: int | None = None
        # The prompts so far: how many messages each had, and its tokens.
        self._prompts: list[tuple[int, int]] = []
        self._rebuild()
        for call in orphans(self._messages):
            self.add_result(ToolResult(call.id, call.name, ORPHAN_TEXT, is_error=True), PlainDisplay(ORPHAN_TEXT), 0.0)

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self._messages)

    @property
    def transcript(self) -> Transcript:
        return self._transcript

    @property
    def call_count(self) -> int:
        return sum(len(message.calls) for message in self._messages)

    @property
    def used_tokens(self) -> int:
        """Tokens of the conversation as the model counted them last; 0 while it has not."""
        return self._known_tokens if self._counted_tokens is None else self._counted_tokens

    async def count(self, model: ChatModel, tools: tuple[ToolSpec, ...]) -> None:
        """Let the model count what has come since its last answer. Raises what count_tokens raises."""
        messages = self.messages
        if len(messages) == self._known_messages:
            return
        counted = await model.count_tokens(messages, tools)
        if self.messages == messages:
            self._counted_tokens = counted

    def add(self, message: Message, usage: Usage | None = None) -> None:
        self._append(Said(message, usage))
        self._learn(usage)

    def add_result(self, result: ToolResult, display: Display, duration_s: float) -> None:
        self._append(Answered(result, display, round(duration_s, 3)))

    def add_own(self, call: ToolCall, result: ToolResult, display: Display, duration_s: float) -> None:
        """A command of the user's own, for who looks at the session: the model is told of it by a message."""
        self._append(Ran(call, result, display, round(duration_s, 3)))

    def add_checkpoint(self, snapshot: str, *, after: bool = False) -> None:
        self._transcript.append(Checkpoint(snapshot, after))

    def mark(self) -> int:
        return len(self._transcript.records)

    def rewind(self, mark: int, *, by_user: bool = False) -> None:
        self._transcript.append(Rewind(mark, by_user))
        self._rebuild()

    def redo(self, rewind: int) -> None:
        """Take the user's Rewind with that record number back."""
        self._transcript.append(Redone(rewind))
        self._rebuild()

    def limit_for(self, model: ChatModel) -> int | None:
        """The context limit in force: the smaller of the user's and the model's."""
        limits = [limit for limit in (self._limit, model.context_limit) if limit is not None]
        return min(limits) if limits else None

    async def fill(self, model: ChatModel, tools: tuple[ToolSpec, ...], room: int) -> Fill:
        limit = self.limit_for(model)
        offered = tools if self._known_messages == 0 else ()
        tokens = self._known_tokens + estimate_tokens(self._messages[self._known_messages :], offered)
        if room < EXACTLY and (limit is None or tokens + room <= limit * SURE_SHARE):
            return Fill(tokens, limit, is_exact=False)
        counted = await model.count_tokens(self.messages, tools)
        return Fill(tokens, limit, is_exact=False) if counted is None else Fill(counted, limit, is_exact=True)

    @property
    def records(self) -> Sequence[Record]:
        """What counts of the transcript, oldest first."""
        return self._transcript.active

    def longest_start(self, most_tokens: int) -> tuple[Message, ...]:
        """The most of the conversation's start that was once a prompt of at most so many tokens; () for none."""
        fitting = [count for count, tokens in self._prompts if tokens <= most_tokens]
        return tuple(self._messages[: max(fitting)]) if fitting else ()

    def begin_anew(self, compacted: Compacted) -> None:
        """From now on the model sees the messages of `compacted` and what follows."""
        self._append(compacted)
        self._forget_counts()
        self._known_messages, self._known_tokens = len(self._messages), compacted.after_tokens

    def _append(self, record: Record) -> None:
        self._transcript.append(record)
        _extend(self._messages, record)

    def _learn(self, usage: Usage | None) -> None:
        if usage is not None and usage.prompt_tokens:
            self._prompts.append((len(self._messages) - 1, usage.prompt_tokens))
            self._known_messages = len(self._messages)
            self._known_tokens = usage.prompt_tokens + usage.completion_tokens
            self._counted_tokens = None

    def _rebuild(self) -> None:
        self._messages = []
        self._forget_counts()
        for record in self._transcript.active:
            _extend(self._messages, record)
            if isinstance(record, Said):
                self._learn(record.usage)
            elif isinstance(record, Compacted):
                self._forget_counts()
                self._known_messages, self._known_tokens = len(self._messages), record.after_tokens

    def _forget_counts(self) -> None:
        self._known_messages = self._known_tokens = 0
        self._counted_tokens = None
        self._prompts = []
