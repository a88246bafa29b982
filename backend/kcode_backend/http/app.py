"""The routes. Everything a client can ask is here; what the server is made of is in server.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kcode_backend.chat.format import BadConversation
from kcode_backend.http.answer import Json
from kcode_backend.http.body import ChatBody, CountBody, chat_messages, declarations, read_body
from kcode_backend.http.errors import RequestRefused, error_response
from kcode_backend.http.gate import Gate
from kcode_backend.http.generate import SessionLengths, begin
from kcode_backend.http.slot import Slot
from kcode_backend.http.stream import EventStream, until_disconnect
from kcode_backend.http.text import TextBody, TextCompletion

MAX_BODY_BYTES = 64 << 20
_CLIENT_WENT_AWAY = 499

Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]


def build_app(slot: Slot, api_key: str | None, lifespan: Lifespan) -> Starlette:
    """The ASGI application over one model slot."""
    endpoints = Endpoints(slot)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/v1/kcode/tokenize", endpoints.tokenize, methods=["POST"]),
            Route("/v1/models", endpoints.models),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
        ],
        middleware=[Middleware(Gate, slot=slot, api_key=api_key)],
        exception_handlers={RequestRefused: _refused, BadConversation: _refused, 404: _no_route, 405: _no_route},
        lifespan=lifespan,
    )


class Endpoints:
    """What each route does."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._sessions = SessionLengths()

    async def chat(self, request: Request) -> Response:
        body, raw = read_body(ChatBody, await _read(request))
        completion = await begin(await self._slot.ready(), body, raw, self._slot.name, self._sessions)
        if body.stream:
            return EventStream(completion)

        async def exhaust() -> None:
            async with contextlib.aclosing(completion.chunks()) as chunks:
                async for _ in chunks:
                    pass

        if not await until_disconnect(request.receive, exhaust()):
            return Response(status_code=_CLIENT_WENT_AWAY)
        return JSONResponse(completion.whole())

    async def completions(self, request: Request) -> Response:
        body, _ = read_body(TextBody, await _read(request))
        completion = TextCompletion(await self._slot.ready(), body, self._slot.name)
        answers: list[Json] = []

        async def run() -> None:
            answers.append(await completion.run())

        if not await until_disconnect(request.receive, run()):
            return Response(status_code=_CLIENT_WENT_AWAY)
        return JSONResponse(answers[0])

    async def tokenize(self, request: Request) -> Response:
        body, raw = read_body(CountBody, await _read(request))
        serving = await self._slot.ready()
        messages = chat_messages(body.messages, serving.model.fingerprint, serving.model.config.vocab)
        ids = await asyncio.to_thread(serving.prompt, messages, declarations(body.tools, raw.get("tools")))
        return JSONResponse({"count": len(ids)})

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok" if self._slot.serving else "loading", "model": self._slot.name})

    async def models(self, _: Request) -> Response:
        serving = await self._slot.ready()
        own: Json = {
            "context_limit": serving.engine.context_limit,
            "fingerprint": serving.model.fingerprint,
            "family": serving.format.family,
        }
        return JSONResponse({"object": "list", "data": [{"id": self._slot.name, "object": "model", "kcode": own}]})

    async def metrics(self, _: Request) -> Response:
        return PlainTextResponse(_metrics(self._slot))


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
    return error_response(error if isinstance(error, RequestRefused) else RequestRefused(400, "invalid_value", str(error)))


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
