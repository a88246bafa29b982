"""How a server ends: what is under way, what comes new, and what a second signal does."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.backend.server.conftest import accepts

if TYPE_CHECKING:
    from tests.backend.server.conftest import EngineServer

    Start = Callable[..., EngineServer]

END_S = 180


def stream(server: EngineServer, max_tokens: int) -> Iterator[dict]:
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "max_tokens": max_tokens,
        "logit_bias": {"65": 100},
    }
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body, timeout=END_S) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))
            elif line == "data: [DONE]":
                yield {}


def test_first_signal_lets_answers_end_and_takes_no_new_ones(start: Start, tiny_file: Path) -> None:
    server = start(tiny_file, "--shutdown-timeout", "120")
    server.wait_ready()
    chunks = stream(server, 400)
    first = [next(chunks), next(chunks)]
    server.process.send_signal(signal.SIGTERM)
    wait_log(server, "requests may go on")
    deadline = time.monotonic() + 30
    while accepts(server.socket):
        assert time.monotonic() < deadline, "the server still takes requests"
        time.sleep(0.02)
    rest = [*first, *chunks]
    assert rest[-1] == {}
    assert rest[-2]["choices"][0]["finish_reason"] == "length"
    assert sum(len(chunk["choices"][0]["delta"].get("content") or "") for chunk in rest[:-1]) == 400
    assert server.process.wait(END_S) == 0


def test_second_signal_ends_answers_with_an_error(start: Start, tiny_file: Path) -> None:
    server = start(tiny_file, "--shutdown-timeout", "120")
    server.wait_ready()
    chunks = stream(server, 30_000)
    next(chunks)
    with ThreadPoolExecutor() as pool:
        body = {"messages": [{"role": "user", "content": "whole"}], "max_tokens": 30_000, "logit_bias": {"65": 100}}
        whole = pool.submit(server.post, body)
        server.wait_metric("kcode_sequences_running", 2, 30)
        server.process.send_signal(signal.SIGTERM)
        wait_log(server, "2 requests may go on")
        server.process.send_signal(signal.SIGTERM)
        *_, failed, done = chunks
        response = whole.result(END_S)
    assert (failed["error"]["code"], failed["error"]["type"], done) == ("shutting_down", "server_error", {})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    assert server.process.wait(END_S) == 0


def test_time_is_up_without_a_second_signal(start: Start, tiny_file: Path) -> None:
    server = start(tiny_file, "--shutdown-timeout", "0.5")
    server.wait_ready()
    chunks = stream(server, 30_000)
    next(chunks)
    server.process.send_signal(signal.SIGTERM)
    *_, failed, done = chunks
    assert (failed["error"]["code"], done) == ("shutting_down", {})
    assert server.process.wait(END_S) == 0


def wait_log(server: EngineServer, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.02)
