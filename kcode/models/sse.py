"""Server-sent events of one response, as chunks of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx

from kcode.model import ModelEvent
from kcode.models.openai_wire import Answer, Chunk, WireError, parse_chunk


async def chunks(response: httpx.Response, idle_s: float | None, answer: Answer) -> AsyncGenerator[Chunk, None]:
    """The chunks up to [DONE] or the end of the body.

    Raises WireError for a line that is no chunk, TimeoutError after `idle_s` of silence (None: wait for ever until the
    answer has begun, then 300 s), and httpx errors when the connection breaks.
    """
    async with aclosing(_lines(response)) as lines:
        while True:
            patience = idle_s if idle_s is not None or not answer.begun else 300.0
            try:
                async with asyncio.timeout(patience):
                    line = await anext(lines)
            except StopAsyncIteration:
                return
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            if data:
                yield parse_chunk(data)


async def _lines(response: httpx.Response) -> AsyncGenerator[str, None]:
    async for line in response.aiter_lines():
        yield line


async def events(response: httpx.Response, idle_s: float | None, answer: Answer) -> AsyncGenerator[ModelEvent, None]:
    """What the answer says as it comes; the last event is its Completed. Raises as `chunks`, and WireError when it is cut."""
    async with aclosing(chunks(response, idle_s, answer)) as stream:
        async for chunk in stream:
            for event in answer.feed(chunk):
                yield event
    if not answer.complete:
        raise WireError("the server closed the stream in the middle of the answer")
    yield answer.completed()
