"""A session after a restart of the engine: prefilling it the first time against finding it on disk.

python backend/bench/resume.py MODEL.gguf --tokens 32704
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent_trace import DEFAULT, AgentTrace, Json, read_trace
from servers import Answer, KcodeServer, Setup, end_with_children, start_kcode

ROOM = 64
"""Tokens of the context beyond the prompt, for the answer."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The same request before the restart, from nothing, and after it."""

    cold: Answer
    resumed: Answer

    @property
    def ratio(self) -> float:
        return self.cold.first_s / self.resumed.first_s


def measure(setup: Setup, trace: AgentTrace, tokens: int) -> Resumed:
    """Asks a fresh engine for one token after at most `tokens` of the trace's text, restarts it and asks the same again."""
    with tempfile.TemporaryDirectory(prefix="kv-", dir=setup.scratch) as folder:
        # Only what this call computes is there, whatever else was measured in this scratch folder.
        with contextlib.closing(start_kcode(setup, Path(folder))) as server:
            messages = session_of(trace, tokens, server)
            cold = server.ask(messages, trace.tools, 1)
        with contextlib.closing(start_kcode(setup, Path(folder))) as server:
            resumed = server.ask(messages, trace.tools, 1)
    if cold.cached_tokens > cold.prompt_tokens // 100:
        raise SystemExit(
            f"{cold.cached_tokens} of {cold.prompt_tokens} tokens were cached before the restart: nothing to compare"
        )
    return Resumed(cold, resumed)


def session_of(trace: AgentTrace, max_tokens: int, server: KcodeServer) -> list[Json]:
    """The trace's text as one conversation of as many whole messages as fit; it begins anew where it ends."""
    results = [message for step in trace.steps for message in step.results]
    messages = list(trace.head)
    number = 0
    while True:
        # Different each time, or it would be found in the cache.
        said: Json = {"role": "user", "content": f"{number}\n{results[number % len(results)]['content']}"}
        longer = [*messages, said]
        if server.count(longer, trace.tools) > max_tokens:
            return messages
        messages, number = longer, number + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2500, help="at most; the context is a little larger")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    end_with_children()
    with tempfile.TemporaryDirectory(prefix="kcode-resume-") as scratch:
        setup = Setup(given.model, given.tokens + ROOM, given.threads, Path(scratch))
        found = measure(setup, read_trace(DEFAULT), given.tokens)
    print(
        f"{found.cold.prompt_tokens} tokens: first {found.cold.first_s:.2f} s, after the restart {found.resumed.first_s:.2f} s "
        f"({found.resumed.cached_tokens} found again): {found.ratio:.2f} x"
    )


if __name__ == "__main__":
    main()
