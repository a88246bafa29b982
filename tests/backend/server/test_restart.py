"""Contexts outlive the engine's process: killed or stopped, the next one computes only what is new."""

from __future__ import annotations

import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.backend.server.conftest import EngineServer

    Start = Callable[..., EngineServer]

# Each engine takes seconds to start.
pytestmark = pytest.mark.slow

Message = dict[str, object]
TOOL = {"type": "function", "function": {"name": "bash", "description": "Runs a command.", "parameters": {"type": "object"}}}
END_S = 60


def wait_written(folder: Path) -> None:
    """Returns when no block was written for two seconds: a kill loses only what was on its way."""
    last, unchanged = -1, 0
    while unchanged < 10:
        now = len(list(folder.glob("*/*.kv")))
        last, unchanged = now, unchanged + 1 if now == last else 0
        time.sleep(0.2)


class Conversation:
    """A session of tool calls; each answer goes back verbatim, by its token ids."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = list(messages)
        self.prompts: list[int] = []
        self.known = [0]
        """After each step: the tokens that are computed by then. Nothing was drawn after the last sampled one."""

    def step(self, server: EngineServer, result: str) -> int:
        """One model call and its result; returns the cached tokens of the call."""
        body = {"messages": self.messages, "tools": [TOOL], "temperature": 0, "max_tokens": 7, "tool_choice": "none"}
        reply = server.post({**body, "kcode": {"session": "s"}})
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        usage = answer["usage"]
        self.prompts.append(usage["prompt_tokens"])
        self.known.append(usage["prompt_tokens"] + usage["completion_tokens"] - 1)
        own = {key: answer["kcode"][key] for key in ("token_ids", "fingerprint")}
        call = {"id": f"call_{len(self.messages)}", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
        self.messages.append({"role": "assistant", "content": "", "tool_calls": [call], "kcode": own})
        self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        return usage["prompt_tokens_details"]["cached_tokens"]


def test_a_tool_session_computes_no_token_twice_whatever_ends_the_engine(start: Start, tiny_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "contexts"
    session = Conversation([{"role": "user", "content": "find the bug in parse.py"}])

    def begin() -> EngineServer:
        server = start(tiny_file, "--kv-dir", str(folder))
        server.wait_ready()
        return server

    def go_on(server: EngineServer, steps: int) -> None:
        for _ in range(steps):
            at = len(session.known)
            assert session.step(server, f"line {at}: " + "x" * (at * 7 % 90)) >= session.known[-2], (
                f"step {at} computed tokens again"
            )

    server = begin()
    go_on(server, 15)
    wait_written(folder)
    server.process.kill()
    server.process.wait(END_S)
    server = begin()
    go_on(server, 15)
    in_memory = branches(server, session, "alpha")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(END_S) == 0

    server = begin()
    assert server.metric("kcode_tokens_fetched_total") == 0
    assert branches(server, session, "gamma") == in_memory
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*/*")}
    assert (stat.S_IMODE(folder.stat().st_mode), modes) == (0o700, {0o600})


def branches(server: EngineServer, session: Conversation, result: str) -> list[int]:
    """Rewinds and forks at several steps: what each has cached."""
    cached: list[int] = []
    for step in (3, 12, 29):
        kept = 1 + 2 * step
        rewound = Conversation(session.messages[:kept])
        cached.append(rewound.step(server, ""))
        assert cached[-1] == session.prompts[step] - 1, "the same prompt needs its last token alone"
        forked = Conversation([*session.messages[: kept - 1], {**session.messages[kept - 1], "content": result}])
        cached.append(forked.step(server, ""))
        assert cached[-1] >= session.known[step]
    return cached


def test_contexts_of_one_kind_of_cache_serve_no_other(start: Start, tiny_file: Path, tmp_path: Path) -> None:
    def cached(kind: str) -> int:
        server = start(tiny_file, "--kv-dir", str(tmp_path / "contexts"), "--kv", kind)
        server.wait_ready()
        found = Conversation([{"role": "user", "content": "find the bug " * 20}]).step(server, "")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(END_S) == 0
        return found

    assert (cached("int8"), cached("int4")) == (0, 0)
    assert cached("int8") > 100
