"""A session asked anew: does the model, given what was recorded so far, answer each step as it did then?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from kcode.context import build
from kcode.errors import ModelError
from kcode.messages import Message
from kcode.model import ChatModel, Completed, ModelRequest, Sampling, ToolSpec
from kcode.transcript import Opened, Record, Said


@dataclass(frozen=True, slots=True)
class Asked:
    """What of the sampling the user wants otherwise than it was; None leaves it."""

    seed: int | None = None
    temperature: float | None = None

    def on(self, sampling: Sampling) -> Sampling:
        if self.seed is not None:
            sampling = replace(sampling, seed=self.seed, varies=False)
        return sampling if self.temperature is None else replace(sampling, temperature=self.temperature)


NOTHING_ASKED = Asked()


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
    records: Sequence[Record],
    model: ChatModel,
    specs: tuple[ToolSpec, ...],
    sampling: Sampling,
    first_step: int = 1,
    asked: Asked = NOTHING_ASKED,
) -> AsyncGenerator[Replayed, None]:
    """Each step from `first_step` (counted from 1), up to the first that differs.

    No tool runs: the model reads the recorded results, and after each equal answer the recorded one is what it goes on from.
    Each step is sampled as it is recorded, or where nothing is recorded by `sampling`, with what is `asked` in any case.
    `records` are the active ones. Raises what the model raises.
    """
    step = 0
    recorded = sampling
    for place, record in enumerate(records):
        if isinstance(record, Opened) and record.sampling is not None:
            recorded = replace(record.sampling, max_tokens=record.sampling.max_tokens or sampling.max_tokens)
        # What has no usage was put into the model's mouth, or broken off.
        if not isinstance(record, Said) or record.message.role != "assistant" or record.usage is None:
            continue
        step += 1
        if step < first_step:
            continue
        messages = tuple(build(records[:place]))
        request = ModelRequest(messages, specs, asked.on(recorded).of_step(len(messages)), session_id=f"replay-{id(records)}")
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
