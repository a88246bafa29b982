"""The routes. Everything a client can ask is here; what the server is made of is in server.py."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kcode_backend.http.answer import Json
from kcode_backend.http.body import ChatBody, CountBody, chat_messages, declarations, read_body
from kcode_backend.http.errors import RequestRefused, error_body, error_response
from kcode_backend.http.generate import Completion, SessionLengths, begin
from kcode_backend.http.slot import Slot
from kcode_backend.http.text import TextBody, TextCompletion

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 20


class Gate:
    """Middleware: counts requests for the idle clock, checks the key, refuses browsers, shapes every failure."""

    def __init__(self, app: ASGIApp, slot: Slot, api_key: str | None) -> None:
        self._app = app
        self._slot = slot
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Request(scope))
        if refusal:
            await error_response(refusal)(scope, receive, send)
            return
        # Asking for the health is no use of the model: it must not keep an idle engine alive.
        counts = scope["path"] != "/health"
        if counts:
            self._slot.begin()
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not started:
                body = error_body(500, "internal_error", "the server failed; its log has the details")
                await JSONResponse(body, status_code=500)(scope, receive, send)
        finally:
            if counts:
                self._slot.end()

    def _refusal(self, request: Request) -> RequestRefused | None:
        if self._api_key is not None:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._api_key.encode()):
                return RequestRefused(
                    401, "invalid_api_key", "the Authorization header has to be 'Bearer KEY' with the key of --api-key"
                )
        elif "origin" in request.headers:
            # Without a key any web page could talk to a server on the loopback address.
            return RequestRefused(403, "browser_refused", "requests from web pages need a server started with --api-key")
        return None


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


def build_app(
    slot: Slot, api_key: str | None, lifespan: Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]
) -> Starlette:
    """The ASGI application over one model slot."""
    sessions = SessionLengths()

    async def chat(request: Request) -> Response:
        body, raw = read_body(ChatBody, await _read(request))
        completion = await begin(await slot.ready(), body, raw, slot.name, sessions)
        if body.stream:
            return EventStream(completion)

        async def exhaust() -> None:
            async with contextlib.aclosing(completion.chunks()) as chunks:
                async for _ in chunks:
                    pass

        if not await until_disconnect(request.receive, exhaust()):
            return Response(status_code=499)
        return JSONResponse(completion.whole())

    async def completions(request: Request) -> Response:
        body, _ = read_body(TextBody, await _read(request))
        completion = TextCompletion(await slot.ready(), body, slot.name)
        answers: list[Json] = []

        async def run() -> None:
            answers.append(await completion.run())

        if not await until_disconnect(request.receive, run()):
            return Response(status_code=499)
        return JSONResponse(answers[0])

    async def tokenize(request: Request) -> Response:
        body, raw = read_body(CountBody, await _read(request))
        serving = await slot.ready()
        messages = chat_messages(body.messages, serving.model.fingerprint, serving.model.config.vocab)
        ids = await asyncio.to_thread(serving.prompt, messages, declarations(body.tools, raw.get("tools")))
        return JSONResponse({"count": len(ids)})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok" if slot.serving else "loading", "model": slot.name})

    async def models(_: Request) -> Response:
        serving = await slot.ready()
        own: Json = {
            "context_limit": serving.engine.context_limit,
            "fingerprint": serving.model.fingerprint,
            "family": serving.format.family,
        }
        return JSONResponse({"object": "list", "data": [{"id": slot.name, "object": "model", "kcode": own}]})

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(_metrics(slot))

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/kcode/tokenize", tokenize, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        middleware=[Middleware(Gate, slot=slot, api_key=api_key)],
        exception_handlers={RequestRefused: _refused, 404: _no_route, 405: _no_route},
        lifespan=lifespan,
    )


async def _read(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise RequestRefused(413, "body_too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused), "registered for RequestRefused"
    return error_response(error)


async def _no_route(request: Request, _: Exception) -> Response:
    return error_response(RequestRefused(404, "not_found", f"there is no {request.method} {request.url.path}"))


def _metrics(slot: Slot) -> str:
    """Prometheus text."""
    values: dict[str, float] = {"kcode_requests_active": slot.active}
    if slot.serving:
        engine = slot.serving.engine
        counters, pool = engine.counters, engine.pool
        values |= {
            "kcode_requests_total": counters.requests,
            "kcode_passes_total": counters.passes,
            "kcode_prompt_tokens_computed_total": counters.prompt_tokens,
            "kcode_tokens_sampled_total": counters.sampled_tokens,
            "kcode_model_seconds_total": counters.model_s,
            "kcode_busy_seconds_total": counters.busy_s,
            "kcode_blocks": pool.blocks,
            "kcode_blocks_used": pool.used,
            "kcode_blocks_cached": pool.cached,
        }
    return "".join(f"{name} {value}\n" for name, value in values.items())
