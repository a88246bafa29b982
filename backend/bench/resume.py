"""A session after a restart of the engine: prefilling it the first time against finding it on disk.

python backend/bench/resume.py MODEL.gguf --tokens 32000
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_trace import DEFAULT, AgentTrace, Json, read_trace
from servers import Answer, Setup, end_with_children, start_kcode


@dataclass(frozen=True, slots=True)
class Resumed:
    """The same request before the restart, from nothing, and after it."""

    cold: Answer
    resumed: Answer

    @property
    def ratio(self) -> float:
        return self.cold.first_s / self.resumed.first_s


def measure(setup: Setup, messages: Sequence[Json], tools: Sequence[Json]) -> Resumed:
    """Asks a fresh engine, restarts it and asks the same again."""
    folder = setup.scratch / "kv"
    answers: list[Answer] = []
    for _ in range(2):
        with contextlib.closing(start_kcode(setup, folder)) as server:
            answers.append(server.ask(messages, tools, 1))
    cold, resumed = answers
    assert cold.cached_tokens == 0, "the cache was not empty at first"
    return Resumed(cold, resumed)


def session_of(trace: AgentTrace, max_tokens: int) -> list[Json]:
    """The trace's text as one conversation of about `max_tokens`; it begins anew where it ends."""
    messages = list(trace.head)
    results = [message for step in trace.steps for message in step.results]
    size, number = 2500, 0
    while size < max_tokens:
        text = str(results[number % len(results)]["content"])
        # Three characters to a token leaves room.
        size += len(text) // 3 + 8
        if size < max_tokens:
            # Different each time, or it would be found in the cache.
            messages.append({"role": "user", "content": f"{number}\n{text}"})
        number += 1
    return messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2500, help="at most; about two thirds of it come out")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    end_with_children()
    trace = read_trace(DEFAULT)
    with tempfile.TemporaryDirectory(prefix="kcode-resume-") as scratch:
        setup = Setup(given.model, max(given.tokens, 4096), given.threads, Path(scratch))
        found = measure(setup, session_of(trace, given.tokens), trace.tools)
    print(
        f"{found.cold.prompt_tokens} tokens: first {found.cold.first_s:.2f} s, after the restart {found.resumed.first_s:.2f} s "
        f"({found.resumed.cached_tokens} found again): {found.ratio:.2f} x"
    )


if __name__ == "__main__":
    main()
