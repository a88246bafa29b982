"""A session asked anew: does the model, given what was recorded so far, answer each step as it did then?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from kcode.context import build
from kcode.errors import ModelError
from kcode.messages import Message
from kcode.model import ChatModel, Completed, ModelRequest, Sampling, ToolSpec
from kcode.transcript import Record, Said


@dataclass(frozen=True, slots=True)
class Replayed:
    """One step: the answer as it was recorded and as it is now."""

    step: int
    recorded: Message
    now: Message

    @property
    def is_same(self) -> bool:
        return _answer_of(self.recorded) == _answer_of(self.now)


async def replay(
    records: Sequence[Record], model: ChatModel, specs: tuple[ToolSpec, ...], sampling: Sampling, first_step: int = 1
) -> AsyncGenerator[Replayed, None]:
    """Each step from `first_step` (counted from 1), up to the first that differs.

    No tool runs: the model reads the recorded results, and after each equal answer the recorded one is what it goes on from.
    `records` are the active ones. Raises what the model raises.
    """
    step = 0
    for place, record in enumerate(records):
        # What has no usage was put into the model's mouth, or broken off.
        if not isinstance(record, Said) or record.message.role != "assistant" or record.usage is None:
            continue
        step += 1
        if step < first_step:
            continue
        request = ModelRequest(tuple(build(records[:place])), specs, sampling, session_id=f"replay-{id(records)}")
        replayed = Replayed(step, record.message, await _answer(model, request))
        yield replayed
        if not replayed.is_same:
            return


async def _answer(model: ChatModel, request: ModelRequest) -> Message:
    async with aclosing(model.stream(request)) as events:
        async for event in events:
            if isinstance(event, Completed):
                return event.message
    raise ModelError(f"{model.name}: the stream ended without an answer; try again")


def _answer_of(message: Message) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """What counts of an answer; its token ids may differ where another engine made them."""
    return message.text, message.thinking, tuple((call.name, call.arguments) for call in message.calls)


def told(message: Message) -> str:
    """An answer for a person."""
    lines = [f"thinking: {message.thinking}"] if message.thinking else []
    lines += [message.text] if message.text else []
    lines += [f"{call.name} {call.arguments}" for call in message.calls]
    return "\n".join(lines) or "(nothing)"
