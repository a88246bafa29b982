"""Two thousand requests of every kind, good and bad: nothing is leaked, nothing fails, and the server still answers."""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.backend.server.conftest import EngineServer, StartEngine

REQUESTS = 2000
WARM_UP = 700
CLIENTS = 6
ANSWER_S = 60
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOOL = {
    "type": "function",
    "function": {
        "name": "pick",
        "parameters": {"type": "object", "properties": {"k": {"enum": ["a", "b"]}, "n": {"type": "integer"}}, "required": ["k"]},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "null"}}}},
}


def valid_body(rng: random.Random) -> tuple[str, dict[str, object]]:
    """A path and a body that the server has to answer."""
    text = " ".join(rng.choice(("hello", "world", "ü", "x" * rng.randint(1, 9))) for _ in range(rng.randint(1, 30)))
    common: dict[str, object] = {
        "max_tokens": rng.randint(1, 12),
        "temperature": rng.choice((0, 1.5)),
        "seed": rng.randint(-9, 9),
    }
    if rng.random() < 0.3:
        extra: dict[str, object] = rng.choice(({"echo": True, "logprobs": 2}, {"n": 3}, {"stop": "e"}, {"logprobs": 1}))
        return TEXT, {"prompt": text, **common, **extra}
    more: dict[str, object] = rng.choice(
        (
            {},
            {"n": 2, "logprobs": True, "top_logprobs": 2},
            {"tools": [TOOL], "tool_choice": "required"},
            {"tools": [TOOL], "kcode": {"bind": {"pick": {"k": {"enum": ["b"]}}}, "session": "s"}},
            {"response_format": SCHEMA},
            {"presence_penalty": 1, "logit_bias": {"65": 3}},
        )
    )
    return CHAT, {"messages": [{"role": "user", "content": text}], **common, **more}


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, lost or doubled, a value of another type, or no text at all."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(rng.randint(0, 400))
    if kind == 1:
        values = (
            b"null",
            b"[]",
            b"{}",
            b"-1",
            b'"x"',
            b"1e999",
            b"NaN",
            b"[[]]",
            b"true",
            rb'"\ud800"',
            b"9" * 50,
            b'{"type":"x"}',
        )
        parts = data.split(b": ")
        at = rng.randrange(1, len(parts))
        parts[at] = rng.choice(values) + parts[at][max(0, parts[at].find(b",")) :]
        return b": ".join(parts)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed))
        if kind == 2:
            changed[at] = rng.randrange(256)
        elif kind == 3:
            del changed[at : at + rng.randint(1, 5)]
        else:
            changed[at:at] = changed[at : at + rng.randint(1, 40)]
    return bytes(changed)


def request(path: str, body: bytes, length: int | None = None) -> bytes:
    said = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {said}\r\n\r\n".encode() + body


def exchange(engine: EngineServer, data: bytes, at_most: int | None = None) -> bytes:
    """What comes back until the server closes, or the first bytes of it, after which the client goes away."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.settimeout(ANSWER_S)
        raw.connect(str(engine.socket))
        raw.sendall(data)
        answer = b""
        while at_most is None or len(answer) < at_most:
            piece = raw.recv(65536)
            if not piece:
                break
            answer += piece
        return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def one(engine: EngineServer, seed: int) -> tuple[str, int]:
    """One request: its kind and the status, 0 where the client did not wait for one."""
    rng = random.Random(seed)
    path, body = valid_body(rng)
    kind = rng.choices(("whole", "stream", "gone", "half", "malformed", "no http"), (25, 15, 25, 5, 27, 3))[0]
    if kind == "whole":
        return kind, status_of(exchange(engine, request(path, json.dumps(body).encode())))
    if kind == "stream":
        answer = exchange(engine, request(path, json.dumps({**body, "stream": True}).encode()))
        assert b"data: [DONE]" in answer, answer[-500:]
        return kind, status_of(answer)
    if kind == "gone":
        long = {**body, "max_tokens": 400, "stream": rng.random() < 0.7, "stop": None}
        exchange(engine, request(path, json.dumps(long).encode()), at_most=rng.choice((0, 0, 1, 300, 2000)))
        return kind, 0
    if kind == "half":
        data = json.dumps(body).encode()
        exchange(engine, request(path, data[: len(data) // 2], len(data)), at_most=0)
        return kind, 0
    if kind == "no http":
        exchange(engine, rng.randbytes(rng.randint(1, 300)) + b"\r\n\r\n", at_most=0)
        return kind, 0
    answer = exchange(engine, request(path, mutated(rng, json.dumps(body).encode())))
    return kind, status_of(answer)


def rest(engine: EngineServer) -> tuple[int, int]:
    """Once nothing is under way: the resident kilobytes and the open files of the server."""
    for gauge in ("kcode_blocks_used", "kcode_sequences_running", "kcode_sequences_waiting"):
        engine.wait_metric(gauge, 0, ANSWER_S)
    # The request that reads the metrics is the only one.
    engine.wait_metric("kcode_http_requests_active", 1, ANSWER_S)
    process = Path(f"/proc/{engine.process.pid}")
    files: list[int] = []
    for _ in range(20):
        # A connection that was just closed may still be there.
        files.append(len(list((process / "fd").iterdir())))
        time.sleep(0.05)
    resident = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(resident.split()[1]), min(files)


@pytest.mark.slow
def test_soak_leaks_nothing(start: StartEngine, tiny_file: Path) -> None:
    engine = start(tiny_file, "--context", "4096")
    engine.wait_ready()
    before = engine.ask("hello world")["choices"]
    seen: Counter[tuple[str, int]] = Counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        seen.update(pool.map(lambda seed: one(engine, seed), range(WARM_UP)))
        resident, files = rest(engine)
        seen.update(pool.map(lambda seed: one(engine, seed), range(WARM_UP, REQUESTS)))
    resident_after, files_after = rest(engine)
    assert engine.ask("hello world")["choices"] == before
    assert sum(seen.values()) == REQUESTS
    assert {status for kind, status in seen if kind in ("whole", "stream")} == {200}
    assert {status for kind, status in seen if kind == "malformed"} <= {200, 400, 413}
    assert seen["malformed", 400] > 300
    assert files_after == files
    assert resident_after <= resident * 1.02, f"{resident} KB after {WARM_UP} requests, {resident_after} KB after {REQUESTS}"
    assert "Traceback" not in engine.log.read_text()
