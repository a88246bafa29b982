"""Our own engine: a process of its own, found or started on demand and shared by all kcodes of a user over a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import BaseModel, ValidationError

import kcode
from kcode.errors import EngineDied, ModelError, StartError
from kcode.messages import Message
from kcode.model import Continuation, ModelEvent, ModelRequest, ScoredText, ToolSpec
from kcode.models import sse
from kcode.models.openai_wire import (
    AS_TRAINED,
    Answer,
    JsonObject,
    WireError,
    Writing,
    encode_messages,
    encode_request,
    encode_tools,
    error_text_of,
)
from kcode.models.text_wire import decode_continuation, decode_scores
from kcode.paths import make_private

SOCKET_WAIT_S = 60.0
HEALTH_TIMEOUT_S = 10.0
POLL_S = 0.05
MAX_LOG_BYTES = 4 << 20
# How the engine begins the last line of its log when it cannot serve the model.
REASON_PREFIX = "kcode_backend.server: "


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What decides which engine process serves: equal options, one process. Zero leaves the engine's own choice."""

    model: Path
    context: int = 0
    threads: int = 0
    idle_s: float = 900.0
    kv_dir: Path | None = None
    """Where computed contexts outlive the engine; None keeps them in its memory alone."""
    kv_disk_bytes: int = 0
    kv: str = ""
    expert_ram_bytes: int = 0
    """For experts of a model that is larger than memory."""
    expert_counts: Path | None = None
    """Where the engine remembers which of them are chosen often."""

    @property
    def name(self) -> str:
        return self.model.name.removesuffix(".gguf")

    def arguments(self, socket: Path) -> list[str]:
        arguments = ["--model", str(self.model), "--socket", str(socket), "--name", self.name]
        arguments += ["--idle-timeout", f"{self.idle_s:g}"]
        if self.context:
            arguments += ["--context", str(self.context)]
        if self.threads:
            arguments += ["--threads", str(self.threads)]
        if self.kv_dir:
            arguments += ["--kv-dir", str(self.kv_dir)]
            if self.kv_disk_bytes:
                arguments += ["--kv-disk-budget", str(self.kv_disk_bytes)]
        if self.kv:
            arguments += ["--kv", self.kv]
        if self.expert_ram_bytes:
            arguments += ["--expert-ram", str(self.expert_ram_bytes)]
        if self.expert_counts:
            arguments += ["--expert-counts", str(self.expert_counts)]
        return arguments

    @property
    def key(self) -> str:
        """A short name for these options; a changed model file is another engine, and so is one of another kcode."""
        found = self.model.stat()
        identity = [kcode.__version__, str(self.model.resolve()), found.st_size, found.st_mtime_ns]
        identity += [self.context, self.threads, self.kv]
        identity += [str(self.kv_dir or ""), self.kv_disk_bytes, self.expert_ram_bytes]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


class _Health(BaseModel):
    status: str


class _Facts(BaseModel):
    context_limit: int | None = None
    fingerprint: str | None = None
    family: str = ""
    vision: bool = False


class _Served(BaseModel):
    id: str
    kcode: _Facts = _Facts()


class _ServedModels(BaseModel):
    data: list[_Served]


class _Count(BaseModel):
    count: int
    counts: tuple[int, ...] | None = None


class LocalModel:
    """The engine for `options`. `runtime` holds the sockets, `logs` what the engine says.

    The process outlives this object and ends by itself when nobody has asked for `idle_s`.
    """

    def __init__(
        self,
        options: EngineOptions,
        runtime: Path,
        logs: Path,
        python: str = sys.executable,
        writing: Writing = AS_TRAINED,
    ) -> None:
        try:
            key = options.key
        except OSError as error:
            raise StartError(f"cannot read the model {options.model}: {error.strerror}") from error
        self._options = options
        self._writing = writing
        self._runtime = runtime
        self._socket = runtime / f"{key}.sock"
        self._log = logs / f"engine-{key}.log"
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._facts: _Facts | None = None
        self._context_limit: int | None = None
        self._starting = asyncio.Lock()
        transport = httpx.AsyncHTTPTransport(uds=str(self._socket))
        # No timeout on reading: the engine answers /health at once, and prefilling may rightly take minutes.
        self._client = httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=httpx.Timeout(None, connect=10.0))

    @property
    def name(self) -> str:
        return self._options.name

    @property
    def context_limit(self) -> int | None:
        """As the engine last said; it stays known while the engine is gone."""
        return self._context_limit

    @property
    def socket(self) -> Path:
        return self._socket

    @property
    def process_id(self) -> int | None:
        """Of the engine this object started; None when it found one or has not started."""
        return self._process.pid if self._process is not None else None

    @property
    def binds_answers(self) -> bool:
        return True

    @property
    def sees(self) -> bool | None:
        return self._facts.vision if self._facts is not None else None

    async def start(self) -> None:
        # Several of a session's requests may find at once that the engine is gone; one of them starts it.
        async with self._starting:
            await self._make_ready()

    async def _make_ready(self) -> None:
        if self._facts is not None and await self._health() == "ok":
            return
        self._facts = None
        if await self._health() is None:
            await self._launch()
        while (status := await self._health()) != "ok":
            if status is None:
                raise StartError(self._why_it_ended(await self._exit_code()))
            await asyncio.sleep(POLL_S)
        self._facts = await self._served()
        self._context_limit = self._facts.context_limit

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        await self.start()
        body = encode_request(request, self.name, native=True, writing=self._writing)
        answer = Answer(sum(len(message.calls) for message in request.messages))
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    said = error_text_of(await response.aread())
                    raise ModelError(f"the engine refused the request: HTTP {response.status_code}: {said}")
                async with aclosing(sse.events(response, None, answer)) as events:
                    async for event in events:
                        yield event
        except (httpx.TransportError, TimeoutError) as error:
            raise await self._died() from error
        except WireError as error:
            if await self._health() is None:
                raise await self._died() from error
            raise ModelError(f"the engine: {error}; its log is {self._log}") from error

    async def count_tokens(self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...] = ()) -> int | None:
        body = {"messages": encode_messages(messages, native=True), "tools": encode_tools(tools), **self._writing.fields()}
        response = await self._post("/v1/kcode/tokenize", body)
        return _Count.model_validate_json(response.content).count if response.status_code == 200 else None

    async def count_texts(self, texts: tuple[str, ...]) -> tuple[int, ...] | None:
        response = await self._post("/v1/kcode/tokenize", {"texts": list(texts)})
        return _Count.model_validate_json(response.content).counts if response.status_code == 200 else None

    async def score(self, text: str, start: int, alternatives: int) -> ScoredText:
        body: JsonObject = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": alternatives}
        body["kcode"] = {"score_from": start}
        return decode_scores(_completed(await self._post("/v1/completions", body)))

    async def continue_text(self, text: str, stop: str, max_tokens: int, draft: str = "") -> Continuation:
        body: JsonObject = {"prompt": text, "max_tokens": max_tokens, "temperature": 0, "stop": [stop]}
        body["kcode"] = {"draft": draft}
        return decode_continuation(_completed(await self._post("/v1/completions", body)))

    async def _post(self, path: str, body: JsonObject) -> httpx.Response:
        await self.start()
        try:
            return await self._client.post(path, json=body)
        except httpx.TransportError as error:
            raise await self._died() from error

    async def close(self) -> None:
        """Let go of the engine; it goes on for others and for the next session."""
        await self._client.aclose()

    async def _health(self) -> str | None:
        """ "ok", "loading", or None when nobody answers at the socket."""
        if not self._socket.exists():
            return None
        try:
            response = await self._client.get("/health", timeout=HEALTH_TIMEOUT_S)
            return _Health.model_validate_json(response.content).status
        except (httpx.TransportError, ValidationError):
            return None

    async def _served(self) -> _Facts:
        try:
            response = await self._client.get("/v1/models")
            served = _ServedModels.model_validate_json(response.content).data
        except (httpx.TransportError, ValidationError) as error:
            raise StartError(f"the engine at {self._socket} does not say what it serves; its log is {self._log}") from error
        return served[0].kcode if served else _Facts()

    async def _launch(self) -> None:
        """Start the engine unless another kcode just did, and wait until its socket answers."""
        try:
            make_private(self._runtime)
            self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._socket.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"cannot use {self._runtime} for the engine's socket: {error}") from error
        try:
            await _lock(lock)
            deadline = time.monotonic() + SOCKET_WAIT_S
            while await self._health() is None and _is_held(self._socket):
                if time.monotonic() > deadline:
                    raise StartError(f"an engine holds {self._socket} and does not answer; end it, or see its log {self._log}")
                await asyncio.sleep(POLL_S)
            if await self._health() is not None:
                return
            self._spawn()
            while await self._health() is None:
                if self._ended() is not None:
                    raise StartError(self._why_it_ended(self._ended()))
                if time.monotonic() > deadline:
                    raise StartError(f"the engine did not open {self._socket} within {SOCKET_WAIT_S:g} s; its log is {self._log}")
                await asyncio.sleep(POLL_S)
        finally:
            os.close(lock)

    def _spawn(self) -> None:
        """Start the process in a session of its own, so that Ctrl+C on the terminal is not its business."""
        if self._log.exists() and self._log.stat().st_size > MAX_LOG_BYTES:
            self._log.replace(self._log.with_suffix(".old.log"))
        with contextlib.suppress(FileNotFoundError):
            self._socket.unlink()
        command = [self._python, "-m", "kcode_backend.server", *self._options.arguments(self._socket)]
        with self._log.open("ab") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )

        # The engine may outlive this object; whoever still runs when it ends must reap it.
        threading.Thread(target=self._process.wait, daemon=True).start()

    def _ended(self) -> int | None:
        """The exit code of the engine we started, when it has ended."""
        return self._process.poll() if self._process is not None else None

    async def _exit_code(self) -> int | None:
        """The exit code of the engine we started, which has just gone silent; None when another kcode started it."""
        for _ in range(40):
            if self._process is None or self._ended() is not None:
                break
            await asyncio.sleep(POLL_S)
        return self._ended()

    def _why_it_ended(self, code: int | None) -> str:
        """One line on an engine that ended before it was ready."""
        said = self._last_words()
        if "No module named" in said:
            return f"the engine cannot start: {said}; install it with: pip install 'kcode-agent[local]'"
        if said.startswith(REASON_PREFIX):
            return said.removeprefix(REASON_PREFIX)
        return f"the engine ended while it was starting ({_exit_text(code)}); its log is {self._log}"

    def _last_words(self) -> str:
        """The last line the engine wrote, or ""."""
        try:
            lines = self._log.read_bytes()[-20_000:].decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        lines = [line.strip() for line in lines if line.strip()]
        return "" if not lines or lines[-1].startswith("--- ") else lines[-1]

    async def _died(self) -> EngineDied:
        """The error for an engine that broke off. The next request starts another."""
        self._facts = None
        code = await self._exit_code()
        return EngineDied(
            f"the engine ended while it was answering ({_exit_text(code)}); "
            f"send the message again and it is started anew (its log: {self._log})"
        )


def _completed(response: httpx.Response) -> bytes:
    if response.status_code != 200:
        raise ModelError(f"the engine refused the request: HTTP {response.status_code}: {error_text_of(response.content)}")
    return response.content


def _exit_text(code: int | None) -> str:
    if code is None:
        return "exit code unknown"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}" + (", perhaps for memory" if code == -signal.SIGKILL else "")
    return f"exit code {code}"


def _is_held(socket: Path) -> bool:
    """Whether an engine lives there all the same: one that is busy beyond measure, or on its way out."""
    try:
        lock = os.open(f"{socket}.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


async def _lock(descriptor: int) -> None:
    """Take an exclusive lock without blocking the event loop."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(POLL_S)
        else:
            return
