"""What drafts and batching bring on the real model: a function rewritten with a small change, free chat, four answers at once.

Rounds with and without are interleaved, so that their ratio holds on a busy machine. Only decoding is timed; the prompt is cached
after the first round.

    python backend/bench/speculation.py MODEL.gguf --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from kcode_backend.chat.format import ChatMessage
from kcode_backend.engine.request import Event, Finished, Generation, Sampled, SamplingParams
from kcode_backend.serving import Serving, load_serving

BRANCHES = "".join(
    f"        if event.kind == 'kind_{n}' and event.size > {n * 3}:\n            totals['{chr(97 + n)}'] += event.size\n"
    for n in range(20)
)
START = "def summarize(events):\n    totals = collections.Counter()\n    for event in events:\n"
FUNCTION = START + BRANCHES + "    return totals\n"
REWRITE = (
    f"Rename the variable `totals` to `sums` in this function. Answer with the whole function only.\n\n```python\n{FUNCTION}```"
)
CHAT = "Explain in a few sentences why the sky is blue and sunsets are red."


@dataclass
class Asked:
    """One answer: its ids, the seconds of its decoding, and what was drafted and right."""

    ids: list[int]
    seconds: float
    drafted: int
    accepted: int

    @property
    def rate(self) -> float:
        return (len(self.ids) - 1) / self.seconds


def answer(serving: Serving, text: str, tokens: int, draft: str, speculate: bool) -> Asked:
    prompt = serving.prompt([ChatMessage("user", text)], [])
    events: SimpleQueue[Event] = SimpleQueue()
    given = tuple(serving.format.answer_ids(draft)) if draft else ()
    stop_ids = serving.format.stop_ids
    serving.engine.submit(
        Generation(
            tuple(prompt), events.put, SamplingParams(temperature=0), tokens, (), stop_ids, draft=given, speculate=speculate
        )
    )
    asked = Asked([], 0.0, 0, 0)
    while not isinstance(event := events.get(), Finished):
        if isinstance(event, Sampled):
            asked.ids += event.ids
            asked.drafted += event.drafted
            asked.accepted += event.accepted
    asked.seconds = event.decode_s
    return asked


def compare(serving: Serving, name: str, text: str, tokens: int, draft: str, rounds: int) -> None:
    pairs: list[tuple[Asked, Asked]] = []
    for _ in range(rounds):
        pairs.append((answer(serving, text, tokens, "", False), answer(serving, text, tokens, draft, True)))
    ratio = statistics.median(drafted.rate / plain.rate for plain, drafted in pairs)
    plain, drafted = (statistics.median(pair[at].rate for pair in pairs) for at in (0, 1))
    last = pairs[-1][1]
    same = all(one.ids == other.ids for one, other in pairs)
    print(
        f"{name}: {plain:.1f} tok/s without, {drafted:.1f} with, ratio {ratio:.2f}; {last.accepted} of {last.drafted} drafts "
        f"right in {len(last.ids)} tokens; the answers are {'equal' if same else 'NOT equal'}",
        flush=True,
    )


def together(serving: Serving, count: int, tokens: int) -> float:
    """Tokens per second of `count` answers at once, from when all have begun."""
    queues: list[SimpleQueue[Event]] = [SimpleQueue() for _ in range(count)]
    for number, events in enumerate(queues):
        prompt = serving.prompt([ChatMessage("user", f"{CHAT} Version {number}.")], [])
        sampling = SamplingParams(temperature=0)
        serving.engine.submit(Generation(tuple(prompt), events.put, sampling, tokens, speculate=False))
    for events in queues:
        while not isinstance(events.get(), Sampled):
            pass
    begun = time.monotonic()
    sampled = 0
    for events in queues:
        while not isinstance(event := events.get(), Finished):
            sampled += len(event.ids) if isinstance(event, Sampled) else 0
    return sampled / (time.monotonic() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=200)
    given = parser.parse_args()
    serving = load_serving(given.model, 4096, given.threads)
    for prompt in (REWRITE, CHAT):
        answer(serving, prompt, 2, "", False)
    compare(serving, "rewrite, the function given as draft", REWRITE, given.tokens, f"```python\n{FUNCTION}```", given.rounds)
    compare(serving, "rewrite, drafts from the prompt alone", REWRITE, given.tokens, "", given.rounds)
    compare(serving, "chat", CHAT, given.tokens // 2, "", given.rounds)
    ratios: list[float] = []
    for _ in range(given.rounds):
        single = together(serving, 1, given.tokens // 8)
        ratios.append(together(serving, 4, given.tokens // 8) / single)
    print(
        f"four answers at once: {statistics.median(ratios):.2f} x the throughput of one ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    counters = serving.engine.counters
    outside = 1 - counters.model_s / counters.busy_s
    print(f"{outside:.1%} of the engine's time was spent outside of the model")
    serving.engine.close()


if __name__ == "__main__":
    main()
