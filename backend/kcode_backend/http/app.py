"""The routes. Everything a client can ask is here; what the server is made of is in server.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kcode_backend.chat.format import BadConversation
from kcode_backend.http.answer import Json
from kcode_backend.http.body import ChatBody, CountBody, chat_messages, declarations, read_body, refuse_unsupported
from kcode_backend.http.errors import RequestRefused, error_response
from kcode_backend.http.gate import Gate
from kcode_backend.http.generate import Completion, SessionLengths, begin
from kcode_backend.http.metrics import CONTENT_TYPE, Endpoint, metrics_text
from kcode_backend.http.slot import Slot
from kcode_backend.http.stream import respond
from kcode_backend.http.text import TextCompletion
from kcode_backend.http.textbody import TextBody
from kcode_backend.tokenizer import Tokenizer

MAX_BODY_BYTES = 64 << 20

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
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
        ],
        middleware=[Middleware(Gate, slot=slot, api_key=api_key)],
        exception_handlers={RequestRefused: _refused, BadConversation: _refused, HTTPException: _no_route},
        lifespan=lifespan,
    )


class Endpoints:
    """What each route does."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._sessions = SessionLengths()

    async def chat(self, request: Request) -> Response:
        with self._counted("chat"):
            body, completion = await self._begin_chat(await _read(request))
        return await respond(request, completion, bool(body.stream))

    async def _begin_chat(self, text: bytes) -> tuple[ChatBody, Completion]:
        body, raw = read_body(ChatBody, text)
        refuse_unsupported(raw)
        return body, await begin(await self._slot.ready(), body, raw, self._sessions)

    async def completions(self, request: Request) -> Response:
        with self._counted("completions"):
            body, raw = read_body(TextBody, await _read(request))
            refuse_unsupported(raw)
            completion = TextCompletion(await self._slot.ready(), body)
        return await respond(request, completion, bool(body.stream))

    async def tokenize(self, request: Request) -> Response:
        body, raw = read_body(CountBody, await _read(request))
        serving = (await self._slot.ready()).serving
        if body.texts is not None:
            counts = await asyncio.to_thread(_lengths, serving.model.tokenizer, body.texts)
            return JSONResponse({"count": sum(counts), "counts": counts})
        messages = chat_messages(body.messages, serving.model.fingerprint, serving.model.config.vocab)
        ids = await asyncio.to_thread(serving.prompt, messages, declarations(body.tools, raw.get("tools")), body.options())
        return JSONResponse({"count": len(ids)})

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok" if self._slot.serving else "loading", "model": self._slot.name})

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [await self._described()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._slot.name:
            message = f"there is no model {name!r}; this server has {self._slot.name!r}"
            raise RequestRefused(404, "model_not_found", message, "model")
        return JSONResponse(await self._described())

    async def metrics(self, _: Request) -> Response:
        slot = self._slot
        text = metrics_text(slot.active, slot.counts, slot.serving.engine if slot.serving else None)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def _described(self) -> Json:
        room = await self._slot.ready()
        own: Json = {
            "context_limit": room.serving.engine.context_limit,
            "fingerprint": room.serving.model.fingerprint,
            "family": room.serving.format.family,
            "vision": room.serving.sees,
        }
        return {"id": room.name, "object": "model", "created": self._slot.created, "owned_by": "kcode", "kcode": own}

    @contextlib.contextmanager
    def _counted(self, endpoint: Endpoint) -> Generator[None]:
        """What ends in here was refused; a request that has begun counts itself."""
        try:
            yield
        except (RequestRefused, BadConversation):
            self._slot.counts.refused(endpoint)
            raise


def _lengths(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [len(tokenizer.encode(text)) for text in texts]


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


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for that class"
    known = error.status_code == 405
    message = f"{request.url.path} takes no {request.method}" if known else f"there is no {request.method} {request.url.path}"
    code = "method_not_allowed" if known else "not_found"
    response = error_response(RequestRefused(error.status_code, code, message))
    response.headers.update(error.headers or {})
    return response
