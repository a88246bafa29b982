"""Servers to compare: ours and llama-cpp-python's, each a process of its own, asked over HTTP in the same way."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol

import httpx
from pydantic import BaseModel

from agent_trace import Json

BACKEND = Path(__file__).resolve().parents[1]
START_S = 600.0
STOP_S = 60.0
POLL_S = 0.1
# llama-cpp-python's log of a request: what it found again, and what it evaluated.
PREFIX_HIT = re.compile(r"Llama\.generate: (\d+) prefix-match hit, remaining (\d+) prompt tokens")
PROMPT_EVALUATED = re.compile(r"prompt eval time =.*?/\s*(\d+) tokens")


class _Delta(BaseModel):
    content: str | None = None
    tool_calls: list[Json] | None = None


class _Choice(BaseModel):
    delta: _Delta
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: int = 0


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details = _Details()


class _Prefill(BaseModel):
    done: int
    total: int


class _Extension(BaseModel):
    prefill: _Prefill | None = None
    token_ids: list[int] = []
    fingerprint: str = ""
    decode_s: float = 0.0


class Chunk(BaseModel):
    """One event of a streamed answer; what other fields it has is not needed."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    kcode: _Extension | None = None
    error: object = None

    @property
    def speaks(self) -> bool:
        """Something is said, or the prompt is computed: the text of a call is held back until its name is known."""
        if self.kcode and self.kcode.prefill and self.kcode.prefill.done == self.kcode.prefill.total:
            return True
        return any(choice.delta.content or choice.delta.tool_calls or choice.finish_reason for choice in self.choices)


class _Count(BaseModel):
    count: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `message` is what the server said, in the form that it takes back as history.

    `first_s` is the time to the first token and `total_s` the time to the last, both from sending the request.
    """

    message: Json
    first_s: float
    total_s: float
    decode_s: float
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int


class Server(Protocol):
    """A running server; `close` ends its process."""

    name: str

    def ask(self, messages: Sequence[Json], tools: Sequence[Json], max_tokens: int, draft: str = "") -> Answer: ...

    def close(self) -> None: ...


class ServerProcess:
    """A child that listens on a port of the loopback address; its output goes to `log`."""

    def __init__(self, command: list[str], port: int, log: Path, environment: dict[str, str]) -> None:
        self.log = log
        self._log_file = log.open("w")
        self._process = subprocess.Popen(
            command, stdout=self._log_file, stderr=self._log_file, env={**os.environ, **environment}, start_new_session=True
        )
        # Prefilling may rightly take minutes.
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=httpx.Timeout(None, connect=10.0))
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise SystemExit(f"the server ended with code {self._process.returncode}: {self.log.read_text()[-2000:]}")
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/v1/models", timeout=START_S).status_code == 200:
                    return
            time.sleep(POLL_S)
        raise SystemExit(f"the server does not answer after {START_S:g} s; its log is {self.log}")

    def chunks(self, body: Json) -> Iterator[tuple[float, Chunk]]:
        """The chunks of a streamed chat completion, each with the seconds since the request was sent."""
        started = time.monotonic()
        with self.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            if response.status_code != 200:
                raise SystemExit(f"HTTP {response.status_code}: {response.read().decode(errors='replace')[:500]}")
            for line in response.iter_lines():
                if line.startswith("data:") and not line.endswith("[DONE]"):
                    chunk = Chunk.model_validate_json(line.removeprefix("data:"))
                    if chunk.error:
                        raise SystemExit(f"the server failed: {chunk.error}")
                    yield time.monotonic() - started, chunk

    def close(self) -> None:
        """In good order, so that a server can save what it keeps."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.client.close()
        self._log_file.close()


class KcodeServer:
    """Our engine. History goes back as the sampled token ids."""

    name = "kcode"

    def __init__(self, process: ServerProcess) -> None:
        self._process = process

    def ask(self, messages: Sequence[Json], tools: Sequence[Json], max_tokens: int, draft: str = "") -> Answer:
        extension: Json = {"session": "bench"}
        if draft:
            extension["draft"] = draft
        text: list[str] = []
        first_s = end_s = 0.0
        last: Chunk | None = None
        for at_s, chunk in self._process.chunks({**_body(messages, tools, max_tokens), "kcode": extension}):
            end_s = at_s
            first_s = first_s or (at_s if chunk.speaks else 0.0)
            text += [choice.delta.content or "" for choice in chunk.choices]
            last = chunk if chunk.usage else last
        assert last is not None, "a stream without usage"
        assert last.usage is not None
        assert last.kcode is not None
        said: Json = {"token_ids": last.kcode.token_ids, "fingerprint": last.kcode.fingerprint}
        message: Json = {"role": "assistant", "content": "".join(text), "kcode": said}
        usage = last.usage
        cached = usage.prompt_tokens_details.cached_tokens
        return Answer(message, first_s, end_s, last.kcode.decode_s, usage.prompt_tokens, cached, usage.completion_tokens)

    def count(self, messages: Sequence[Json], tools: Sequence[Json]) -> int:
        """Tokens of the prompt that `ask` would send."""
        response = self._process.client.post("/v1/kcode/tokenize", json={"messages": list(messages), "tools": list(tools)})
        return _Count.model_validate_json(response.content).count

    def close(self) -> None:
        self._process.close()


class LlamaServer:
    """llama_cpp.server. History goes back as text; what it evaluated is read from its log."""

    name = "llama.cpp"

    def __init__(self, process: ServerProcess) -> None:
        self._process = process
        self._read = 0

    def ask(self, messages: Sequence[Json], tools: Sequence[Json], max_tokens: int, draft: str = "") -> Answer:
        text: list[str] = []
        first_s = end_s = 0.0
        for at_s, chunk in self._process.chunks({**_body(messages, tools, max_tokens), "repeat_penalty": 1.0}):
            end_s = at_s
            first_s = first_s or (at_s if chunk.speaks else 0.0)
            text += [choice.delta.content or "" for choice in chunk.choices]
        said = "".join(text)
        cached, evaluated = self._evaluated()
        written = self._count(said) if said else 0
        message: Json = {"role": "assistant", "content": said}
        return Answer(message, first_s, end_s, end_s - first_s, cached + evaluated, cached, written)

    def _count(self, text: str) -> int:
        response = self._process.client.post("/extras/tokenize/count", json={"input": text})
        return _Count.model_validate_json(response.content).count

    def _evaluated(self) -> tuple[int, int]:
        """Prompt tokens found again and evaluated, of the request just answered."""
        text = self._process.log.read_text(errors="replace")
        new, self._read = text[self._read :], len(text)
        if hit := PREFIX_HIT.search(new):
            return int(hit[1]), int(hit[2])
        evaluated = PROMPT_EVALUATED.search(new)
        return 0, int(evaluated[1]) if evaluated else 0

    def close(self) -> None:
        self._process.close()


def _body(messages: Sequence[Json], tools: Sequence[Json], max_tokens: int) -> Json:
    body: Json = {"model": "bench", "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
    return {**body, "tools": list(tools), "tool_choice": "auto"} if tools else body


@dataclass(frozen=True, slots=True)
class Setup:
    """What both servers are given; logs and caches go to `scratch`."""

    model: Path
    context: int
    threads: int
    scratch: Path


def start_kcode(setup: Setup, kv_folder: Path | None = None) -> KcodeServer:
    """`kv_folder` is where the cache survives a restart."""
    port = _free_port()
    command = [sys.executable, "-m", "kcode_backend.server", "--model", str(setup.model), "--port", str(port)]
    command += ["--context", str(setup.context), "--threads", str(setup.threads)]
    if kv_folder is not None:
        command += ["--kv-dir", str(kv_folder)]
    environment = {"PYTHONPATH": os.pathsep.join([str(BACKEND), os.environ.get("PYTHONPATH", "")])}
    return KcodeServer(ServerProcess(command, port, setup.scratch / "kcode.log", environment))


def start_llama(setup: Setup, python: str, *, cache: bool) -> LlamaServer:
    """`cache` keeps whole states in memory beside the context; the prefix of the last request is reused either way.

    Logits of the whole prompt, which this server computes unless told otherwise, are switched off.
    """
    port = _free_port()
    command = [python, "-m", "llama_cpp.server", "--model", str(setup.model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--n_ctx", str(setup.context), "--n_threads", str(setup.threads), "--n_threads_batch", str(setup.threads)]
    command += ["--logits_all", "false", "--cache", str(cache).lower()]
    return LlamaServer(ServerProcess(command, port, setup.scratch / "llama.log", {"PYTHONPATH": ""}))


def end_with_children() -> None:
    """SIGTERM from now on leaves by way of SystemExit, so that the servers that were started end too."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
