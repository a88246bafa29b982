"""An answer of the model while it comes in: its pieces go to the person, and what came of a broken-off one is kept."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass, field

from kcode.errors import ModelError
from kcode.events import CallPiece, Prefill, TextPiece, ThinkingPiece
from kcode.messages import Message, Part, Text, Thinking
from kcode.model import (
    CallDelta,
    ChatModel,
    Completed,
    ModelEvent,
    ModelRequest,
    PrefillProgress,
    TextDelta,
    ThinkingDelta,
)
from kcode.turn import Emit


@dataclass(slots=True)
class Partial:
    """What was streamed of an answer that is not complete."""

    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)

    def message(self) -> Message | None:
        parts: list[Part] = []
        if self.thinking:
            parts.append(Thinking("".join(self.thinking)))
        if self.text:
            parts.append(Text("".join(self.text)))
        return Message("assistant", tuple(parts)) if parts else None


async def receive(model: ChatModel, request: ModelRequest, emit: Emit, partial: Partial, *, silent: bool) -> Completed:
    """The whole answer. Its pieces are emitted as they come and kept in `partial`; of a silent one only the prefill is.

    Raises what the model's stream raises.
    """
    started = time.monotonic()
    async with aclosing(model.stream(request)) as events:
        async for event in events:
            if isinstance(event, Completed):
                return event
            if not silent or isinstance(event, PrefillProgress):
                _relay(event, emit, partial, started)
    raise ModelError(f"{model.name}: the stream ended without an answer; try again")


def _relay(event: ModelEvent, emit: Emit, partial: Partial, started: float) -> None:
    if isinstance(event, TextDelta):
        partial.text.append(event.text)
        emit(TextPiece(event.text))
    elif isinstance(event, ThinkingDelta):
        partial.thinking.append(event.text)
        emit(ThinkingPiece(event.text))
    elif isinstance(event, CallDelta):
        emit(CallPiece(event.index, event.name, event.arguments))
    elif isinstance(event, PrefillProgress):
        elapsed = time.monotonic() - started
        rate = max(event.done - event.cached, 0) / elapsed if elapsed > 0 else 0.0
        emit(Prefill(event.done, event.total, event.cached, rate))
