"""Answers that end when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from kcode_backend.http.errors import RequestRefused

_CLIENT_WENT_AWAY = 499

Json = dict[str, object]


class Answering(Protocol):
    """A request that the engine works on."""

    def chunks(self) -> AsyncGenerator[Json | None]:
        """Drives it; None only says that it is alive. Raises RequestRefused."""
        ...

    def whole(self) -> Json:
        """The result, once `chunks` is exhausted."""
        ...

    def close(self) -> None:
        """It is over, or nobody wants it any more: what is still computed is cancelled. May be called again."""
        ...


async def respond(request: Request, answering: Answering, stream: bool) -> Response:
    """The result as a stream or as one object."""
    if stream:
        return EventStream(answering)

    async def exhaust() -> None:
        async with contextlib.aclosing(answering.chunks()) as chunks:
            async for _ in chunks:
                pass

    try:
        if not await until_disconnect(request.receive, exhaust()):
            return Response(status_code=_CLIENT_WENT_AWAY)
        return JSONResponse(answering.whole())
    finally:
        answering.close()


class EventStream(Response):
    """Server-sent events of one answer. The client's going away is noticed at once, also while nothing is sent."""

    media_type = "text/event-stream"

    def __init__(self, answering: Answering) -> None:
        super().__init__()
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def feed() -> None:
            async with contextlib.aclosing(self._answering.chunks()) as chunks:
                headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                try:
                    async for chunk in chunks:
                        await send({"type": "http.response.body", "body": _event(chunk), "more_body": True})
                except RequestRefused as error:
                    await send({"type": "http.response.body", "body": _event(error.body), "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

        # Not left to the generator: one that was never begun has nothing that runs when it is closed.
        try:
            await until_disconnect(receive, feed())
        finally:
            self._answering.close()


def _event(data: Json | None) -> bytes:
    """A comment keeps the connection alive where there is nothing to say."""
    return b": working\n\n" if data is None else f"data: {json.dumps(data)}\n\n".encode()


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
