"""Several requests at once through our server: the tokens a second of four decodes together against one alone.

python backend/bench/batching.py MODEL.gguf
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from agent_trace import Json
from servers import Answer, Server, Setup, end_with_children, start_kcode

TOPICS = ("a list", "a queue", "a stack", "a tree", "a heap", "a graph", "a set", "a table")


@dataclass(frozen=True, slots=True)
class Batching:
    """Tokens a second of all requests together, one entry a round."""

    single: list[float]
    together: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.together) / statistics.median(self.single)


def measure(server: Server, requests: int, answer: int, rounds: int) -> Batching:
    """Rounds of one and of `requests` decodes in turn. The prompts are in the cache, so that decoding is what is measured."""
    conversations = [_conversation(topic) for topic in TOPICS[:requests]]
    for conversation in conversations:
        server.ask(conversation, [], 1)
    found = Batching([], [])
    with ThreadPoolExecutor(requests) as threads:
        for _ in range(rounds):
            found.single.append(_rate([server.ask(conversations[0], [], answer)]))
            found.together.append(_rate(list(threads.map(lambda each: server.ask(each, [], answer), conversations))))
    return found


def _rate(answers: Sequence[Answer]) -> float:
    """The first token of each answer belongs to its prefill. The last one to end bounds the time."""
    return sum(answer.written_tokens - 1 for answer in answers) / max(answer.decode_s for answer in answers)


def _conversation(topic: str) -> list[Json]:
    return [{"role": "user", "content": f"Write a long Python module that implements {topic}, with many methods and comments."}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=4, choices=range(2, len(TOPICS) + 1))
    parser.add_argument("--answer", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    end_with_children()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kcode-batching-")))
        server = stack.enter_context(contextlib.closing(start_kcode(Setup(given.model, 4096, given.threads, scratch))))
        found = measure(server, given.requests, given.answer, given.rounds)
    single, together = statistics.median(found.single), statistics.median(found.together)
    print(f"one {single:.2f} tok/s, {given.requests} together {together:.2f} tok/s: {found.ratio:.2f} x")


if __name__ == "__main__":
    main()
