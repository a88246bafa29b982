"""Any OpenAI-style server: vLLM, SGLang, llama-server, Ollama, Moonshot and others."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import httpx
from pydantic import BaseModel, ValidationError

from kcode.errors import AnswerBroken, ContextTooLong, ModelError, StartError
from kcode.messages import Message
from kcode.model import Completed, ModelEvent, ModelRequest, ToolSpec
from kcode.models import sse
from kcode.models.context_limit import ContextLimit
from kcode.models.openai_wire import AS_TRAINED, Answer, WireError, Writing, encode_request, error_text_of
from kcode.models.redact import redacted_message

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 60.0
CONNECT_TIMEOUT_S = 15.0
REMOTE_IDLE_S = 300.0
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 529})


class _Extension(BaseModel):
    context_limit: int | None = None
    vision: bool | None = None


class _Model(BaseModel):
    id: str
    max_model_len: int | None = None
    context_length: int | None = None
    context_window: int | None = None
    kcode: _Extension | None = None

    @property
    def context_limit(self) -> int | None:
        ours = self.kcode.context_limit if self.kcode is not None else None
        return ours or self.max_model_len or self.context_length or self.context_window


class _Models(BaseModel):
    data: list[_Model] = []


class _Retry(Exception):
    """The request failed in a way that may pass; `delay_s` is what the server asked for, or None."""

    def __init__(self, reason: str, delay_s: float | None = None) -> None:
        super().__init__(reason)
        self.delay_s = delay_s


class HttpModel:
    """A model behind `base_url` (up to and including /v1, which is added when there is no path).

    `key_variable` is the name of the environment variable that `api_key` came from, for messages. `first_delay_s` is the
    base of the exponential pause between attempts. Retries happen only while nothing of the answer has arrived.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str,
        key_variable: str,
        first_delay_s: float = FIRST_DELAY_S,
        writing: Writing = AS_TRAINED,
        redaction: str = "auto",
        on_redacted: Callable[[str], None] | None = None,
    ) -> None:
        """`redaction` as the setting says; `on_redacted` is told once, at the first key taken out."""
        url = httpx.URL(base_url)
        if url.scheme not in {"http", "https"} or not url.host:
            raise StartError(f"--base-url {base_url!r} is not an http(s) address, for example http://127.0.0.1:8000/v1")
        self._base = str(url).rstrip("/") if url.path not in {"", "/"} else str(url.copy_with(path="/v1"))
        self._name = model
        self._writing = writing
        self._key_variable = key_variable
        self._first_delay_s = first_delay_s
        self._limit = ContextLimit()
        self._sees: bool | None = None
        self._started = False
        # A server near by may be prefilling for minutes on its processor; one far away that says nothing is broken.
        self._idle_s = None if _is_near(url.host) else REMOTE_IDLE_S
        self._redacts = redaction == "on" or (redaction == "auto" and not _is_near(url.host))
        self._on_redacted = on_redacted
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S, write=60.0)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=self._idle_s is not None)

    @property
    def name(self) -> str:
        return self._name

    @property
    def base_url(self) -> str:
        """Up to and including /v1."""
        return self._base

    @property
    def context_limit(self) -> int | None:
        return self._limit.tokens

    @property
    def binds_answers(self) -> bool:
        return False

    @property
    def sees(self) -> bool | None:
        return self._sees

    async def start(self) -> None:
        if self._started:
            return
        try:
            models = await self._models()
        except (httpx.TransportError, TimeoutError) as error:
            raise StartError(f"cannot reach {self._base}: {_reason(error)}; is the server running?") from error
        if not self._name:
            if len(models) != 1:
                known = ", ".join(model.id for model in models[:20]) or "it does not say"
                raise StartError(f"name a model with --model; {self._base} has: {known}")
            self._name = models[0].id
        mine = next((model for model in models if model.id == self._name), None)
        self._limit = ContextLimit(mine.context_limit if mine is not None else None)
        self._sees = mine.kcode.vision if mine is not None and mine.kcode is not None else None
        self._started = True

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        if request.grammar is not None or request.prefix:
            raise ModelError(f"{self._base} cannot bind an answer to a grammar or prefix; use --profile generic")
        request = self._without_keys(request)
        body = encode_request(request, self._name, native=False, writing=self._writing)
        first_call = sum(len(message.calls) for message in request.messages)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            answer = Answer(first_call)
            try:
                async with aclosing(self._attempt(body, answer)) as events:
                    async for event in events:
                        yield event
                return
            except _Retry as failed:
                if attempt == MAX_ATTEMPTS:
                    raise ModelError(f"{self._base}: {failed}; gave up after {attempt} attempts") from failed
                delay_s = self._delay_s(attempt, failed.delay_s)
                log.warning("%s: %s; trying again in %.1f s", self._base, failed, delay_s)
                await asyncio.sleep(delay_s)

    def _without_keys(self, request: ModelRequest) -> ModelRequest:
        if not self._redacts:
            return request
        pairs = [redacted_message(message) for message in request.messages]
        kinds = sorted(frozenset[str]().union(*(found for _, found in pairs)))
        if kinds and self._on_redacted is not None:
            self._on_redacted(f"{', '.join(kinds)}: taken out of what is sent to {self._base} (redaction = off sends all)")
            self._on_redacted = None
        return replace(request, messages=tuple(message for message, _ in pairs))

    async def count_tokens(self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...] = ()) -> int | None:
        return None

    async def close(self) -> None:
        await self._client.aclose()

    def _delay_s(self, attempt: int, asked_s: float | None) -> float:
        if asked_s is not None:
            return min(asked_s, MAX_DELAY_S)
        return min(self._first_delay_s * 2 ** (attempt - 1), MAX_DELAY_S) * random.uniform(0.5, 1.5)

    async def _attempt(self, body: dict[str, object], answer: Answer) -> AsyncGenerator[ModelEvent, None]:
        try:
            async with self._client.stream("POST", f"{self._base}/chat/completions", json=body) as response:
                sent_bytes = int(response.request.headers["content-length"])
                if response.status_code != 200:
                    raise await self._refusal(response, sent_bytes)
                async with aclosing(sse.events(response, self._idle_s, answer)) as events:
                    async for event in events:
                        if isinstance(event, Completed):
                            self._limit.accepted(sent_bytes, event.usage.prompt_tokens)
                        yield event
        except (httpx.TransportError, TimeoutError) as error:
            if not answer.begun:
                raise _Retry(_reason(error)) from error
            raise AnswerBroken(f"{self._base}: the connection broke in the middle of the answer ({_reason(error)})") from error
        except WireError as error:
            raise ModelError(f"{self._base}: {error}") from error

    async def _refusal(self, response: httpx.Response, sent_bytes: int) -> Exception:
        """The error for a response that is not 200: _Retry when trying again may help, else a ModelError."""
        status = response.status_code
        told = await response.aread()
        said = error_text_of(told) or response.reason_phrase
        if self._limit.refused(status, told, sent_bytes):
            return ContextTooLong(f"{self._base} refused the request as too long: HTTP {status}: {said}")
        if status in RETRIED_STATUSES:
            return _Retry(f"HTTP {status} ({said})", _retry_after_s(response))
        if status in {401, 403}:
            return ModelError(self._refused_key(status, said))
        if status == 404:
            try:
                known = ", ".join(model.id for model in await self._models())
            except (httpx.TransportError, TimeoutError, StartError):
                known = ""
            listed = f"; the server has: {known}" if known else ""
            return ModelError(f"{self._base} has no model {self._name!r} (HTTP 404: {said}){listed}")
        return ModelError(f"{self._base} refused the request: HTTP {status}: {said}")

    def _refused_key(self, status: int, said: str) -> str:
        return f"{self._base} refused the key: HTTP {status} ({said}); set the environment variable {self._key_variable}"

    async def _models(self) -> list[_Model]:
        """The server's models; empty when it has no such list."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            response = await self._client.get(f"{self._base}/models")
        if response.status_code in {401, 403}:
            raise StartError(self._refused_key(response.status_code, error_text_of(response.content)))
        if response.status_code != 200:
            return []
        try:
            return _Models.model_validate_json(response.content).data
        except ValidationError:
            return []


def _is_near(host: str) -> bool:
    """Whether the host is this machine or on the local network."""
    if host == "localhost" or host.endswith(".local"):
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "it did not answer in time"
    return str(error) or type(error).__name__


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds the server asks to wait; dates are not read, they are rare and clocks differ."""
    try:
        return max(float(response.headers.get("retry-after", "")), 0.0)
    except ValueError:
        return None
