"""A recorded agent session played again: the same trace to our server and to llama.cpp's, step by step in turn.

Closed loop: each step sends the conversation so far; what the server itself answers, cut at the length of the recorded answer,
goes into its own history, ours as token ids and llama.cpp's as text; then the recorded tool results follow. So each server
prefills the same text and writes about as much, and what its cache holds is decided by what it really said.

    python backend/bench/replay.py MODEL.gguf --llama /path/to/python --steps 10
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent_trace import DEFAULT, AgentTrace, Json, read_trace
from servers import Answer, Server, Setup, end_with_children, start_kcode, start_llama

CONTEXT = 28672
"""Tokens: the recorded session and room for tokenizers that take more."""


@dataclass
class Replay:
    """One server's way through the trace."""

    server: Server
    trace: AgentTrace
    messages: list[Json]
    answers: list[Answer] = field(default_factory=list[Answer])

    def step(self) -> None:
        number = len(self.answers)
        recorded = self.trace.steps[number]
        answer = self.server.ask(self.messages, self.trace.tools, recorded.answer_tokens, recorded.draft)
        self.answers.append(answer)
        self.messages += [answer.message, *recorded.results]

    @property
    def total_s(self) -> float:
        return sum(answer.total_s for answer in self.answers)

    @property
    def written(self) -> int:
        return sum(answer.written_tokens for answer in self.answers)

    @property
    def prefilled(self) -> int:
        return sum(answer.prompt_tokens - answer.cached_tokens for answer in self.answers)

    @property
    def repeated(self) -> list[int]:
        """Per step after the first: prompt tokens computed although the step before had computed them."""
        counts: list[int] = []
        for before, after in zip(self.answers, self.answers[1:], strict=False):
            new = after.prompt_tokens - before.prompt_tokens - before.written_tokens
            counts.append(max(after.prompt_tokens - after.cached_tokens - new, 0))
        return counts

    def figures(self) -> Json:
        later = self.answers[1:]
        return {
            "server": self.server.name,
            "steps": len(self.answers),
            "total_s": round(self.total_s, 2),
            "first_step_s": round(self.answers[0].first_s, 2),
            "median_first_token_s": round(statistics.median(answer.first_s for answer in later), 3) if later else None,
            "prompt_tokens": self.answers[-1].prompt_tokens,
            "prefilled_tokens": self.prefilled,
            "repeated_tokens": sum(self.repeated),
            "written_tokens": self.written,
        }


def replay(servers: Sequence[Server], trace: AgentTrace, steps: int, limit_s: float) -> list[Replay]:
    """At most `steps` steps of the trace on each server in turn; none is begun after `limit_s`, except the first two."""
    replays = [Replay(server, trace, list(trace.head)) for server in servers]
    started = time.monotonic()
    for number in range(min(steps, len(trace.steps))):
        if number >= 2 and time.monotonic() - started > limit_s:
            break
        # The other one begins each time, so that a neighbour's load hits both alike.
        for one in replays if number % 2 == 0 else replays[::-1]:
            one.step()
    return replays


def table(replays: Sequence[Replay]) -> list[str]:
    heads = ("steps", "total s", "first step s", "first token s", "prefilled", "again", "written")
    lines = [f"{'server':10}" + "".join(f"{head:>14}" for head in heads)]
    for one in replays:
        later = statistics.median(answer.first_s for answer in one.answers[1:]) if one.answers[1:] else 0.0
        cells = [f"{len(one.answers)}", f"{one.total_s:.1f}", f"{one.answers[0].first_s:.1f}", f"{later:.2f}"]
        cells += [f"{count}" for count in (one.prefilled, sum(one.repeated), one.written)]
        lines.append(f"{one.server.name:10}" + "".join(f"{cell:>14}" for cell in cells))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--trace", type=Path, default=DEFAULT)
    parser.add_argument("--llama", metavar="PYTHON", help="interpreter with llama-cpp-python[server]; without it ours runs alone")
    parser.add_argument("--llama-cache", action="store_true", help="let llama.cpp's server also keep whole states in memory")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="S", help="begin no step after so many seconds")
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    end_with_children()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kcode-replay-")))
        setup = Setup(given.model, given.context, given.threads, scratch)
        servers: list[Server] = [stack.enter_context(contextlib.closing(start_kcode(setup)))]
        if given.llama:
            servers.append(stack.enter_context(contextlib.closing(start_llama(setup, given.llama, cache=given.llama_cache))))
        replays = replay(servers, read_trace(given.trace), given.steps, given.limit)
    print("\n".join(table(replays)))
    print(json.dumps([one.figures() for one in replays]))


if __name__ == "__main__":
    main()
