"""Real engine processes on Unix sockets, with a random tiny model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.backend.conftest import TinyModel, WriteTiny

ROOT = Path(__file__).resolve().parents[3]
START_S = 180


@dataclass
class EngineServer:
    """One engine process; requests go through its socket."""

    process: subprocess.Popen[str]
    socket: Path
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://engine", timeout=300)

    def post(self, body: dict[str, object]) -> httpx.Response:
        with self.client() as client:
            return client.post("/v1/chat/completions", json=body)

    def ask(self, text: str, **fields: object) -> dict[str, object]:
        """The whole answer to one user message, greedy unless said otherwise."""
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12, **fields}
        response = self.post(body)
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, body: dict[str, object]) -> list[dict[str, object]]:
        """All chunks of a stream as kcode itself asks for it, which has to end with [DONE]."""
        chunks: list[dict[str, object]] = []
        body = {"kcode": {}, **body, "stream": True}
        with self.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        chunks += [json.loads(line) for line in lines[:-1]]
        return chunks

    def metric(self, name: str) -> float:
        with self.client() as client:
            text = client.get("/metrics").text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))

    def wait_ready(self) -> None:
        """Returns once the model is loaded."""
        deadline = time.monotonic() + START_S
        while not accepts(self.socket):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"no socket after {START_S} s: {self.log.read_text()}"
            time.sleep(0.05)
        with self.client() as client:
            # Waits for the load.
            assert client.get("/v1/models", timeout=START_S).status_code == 200, self.log.read_text()

    def wait_metric(self, name: str, value: float, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.02)


def accepts(address: Path | tuple[str, int]) -> bool:
    """Whether somebody listens there."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(address) if isinstance(address, Path) else address) == 0


def start_engine(folder: Path, model: Path, *arguments: str, name: str = "engine.sock") -> EngineServer:
    """An engine process whose log lies in `folder`; wait_ready has still to be called."""
    path, log = folder / name, folder / "engine.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "backend"), "PYTHONUNBUFFERED": "1", "HOME": str(folder)}
    command = [sys.executable, "-m", "kcode_backend.server", "--model", str(model), "--threads", "2", *arguments]
    if "--port" not in arguments:
        command += ["--socket", str(path)]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, text=True, env=environment, cwd=folder, start_new_session=True
        )
    return EngineServer(process, path, log)


StartEngine = Callable[..., EngineServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartEngine]:
    """Starts engines in the test's folder and ends them with the test."""
    started: list[EngineServer] = []

    def begin(model: Path, *arguments: str, name: str = "engine.sock") -> EngineServer:
        started.append(start_engine(tmp_path, model, *arguments, name=name))
        return started[-1]

    yield begin
    for server in started:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def shared_engines() -> Iterator[list[EngineServer]]:
    engines: list[EngineServer] = []
    yield engines
    for server in engines:
        server.process.kill()
        server.process.wait()


@pytest.fixture
def tiny_file(tiny: TinyModel, write_tiny: WriteTiny) -> Path:
    """A tiny model with a long context, so that a prompt can take a while."""
    return write_tiny(replace(tiny, context=32768))


@pytest.fixture
def engine(shared_engines: list[EngineServer], tmp_path: Path, tiny_file: Path) -> EngineServer:
    """One engine for all tests of a module."""
    if not shared_engines:
        shared_engines.append(start_engine(tmp_path, tiny_file, "--name", "tiny"))
        shared_engines[0].wait_ready()
    return shared_engines[0]
