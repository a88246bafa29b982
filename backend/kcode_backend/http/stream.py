"""Answers that end when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kcode_backend.http.errors import RequestRefused, error_body
from kcode_backend.http.generate import Completion


class EventStream(Response):
    """Server-sent events of one completion. The client's going away is noticed at once, also while nothing is sent."""

    media_type = "text/event-stream"

    def __init__(self, completion: Completion) -> None:
        super().__init__()
        self._completion = completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def feed() -> None:
            async with contextlib.aclosing(self._completion.chunks()) as chunks:
                try:
                    async for chunk in chunks:
                        await send({"type": "http.response.body", "body": _event(json.dumps(chunk)), "more_body": True})
                except RequestRefused as error:
                    body = error_body(error.status, error.code, str(error))
                    await send({"type": "http.response.body", "body": _event(json.dumps(body)), "more_body": True})
            await send({"type": "http.response.body", "body": _event("[DONE]"), "more_body": False})

        await until_disconnect(receive, feed())


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


async def until_disconnect(receive: Receive, work: Awaitable[None]) -> bool:
    """Run `work` unless the client goes away first, which cancels it; True when it was finished."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return True
        return False
    finally:
        for unfinished in (task, watch):
            unfinished.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
