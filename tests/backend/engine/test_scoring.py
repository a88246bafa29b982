"""Scores of a prompt: each is the log-softmax of a plain pass, however the prompt is cut, cached, batched or preempted."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from kcode_backend.engine.engine import Engine
from kcode_backend.engine.request import Event, Failed, Finished, Generation, Prefilled, Sampled, SamplingParams, Scored
from kcode_backend.kv.cache import KVCache
from kcode_backend.models.batch import Batch
from kcode_backend.models.load import load
from kcode_backend.models.model import Model
from tests.backend.engine.test_engine import VOCAB, Bench, greedy, logits_after

if TYPE_CHECKING:
    from tests.backend.conftest import TinyModel, WriteTiny

Entry = tuple[float, tuple[tuple[int, float], ...]]


@dataclass
class Reading:
    """A scoring request, followed to its end."""

    events: queue.Queue[Event] = field(default_factory=queue.Queue)
    scores: dict[int, Entry] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    parts: int = 0
    """Scored events: one per chunk."""

    def wait(self, timeout_s: float = 60) -> Finished:
        while True:
            match self.events.get(timeout=timeout_s):
                case Scored(start, logprobs, alternatives):
                    self.parts += 1
                    for place, entry in enumerate(zip(logprobs, alternatives, strict=True), start):
                        assert self.scores.setdefault(place, entry) == entry, f"two scores for token {place}"
                case Sampled(ids):
                    self.ids += ids
                case Prefilled():
                    pass
                case Failed(message):
                    raise AssertionError(message)
                case Finished() as finished:
                    return finished


def read(engine: Engine, prompt: Sequence[int], start: int = 1, alternatives: int = 3, max_tokens: int = 0) -> Reading:
    reading = Reading()
    generation = Generation(
        prompt=tuple(prompt),
        sink=reading.events.put,
        sampling=SamplingParams(temperature=0),
        max_tokens=max_tokens,
        scored_from=start,
        alternatives=alternatives,
    )
    engine.submit(generation)
    return reading


def likely(logits: np.ndarray) -> np.ndarray:
    """Log-softmax of one row, in double precision."""
    wide = logits.astype(np.float64)
    return wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())


def expect(found: dict[int, Entry], rows: Sequence[np.ndarray], prompt: Sequence[int], start: int, alternatives: int) -> None:
    """Every token from `start` on is scored from the row before it; `rows` are logits after each token.

    Tolerance: sums in another order, and now and then a key that rounds to the other of two neighbouring float16 numbers.
    """
    assert sorted(found) == list(range(start, len(prompt)))
    for place, (logprob, others) in found.items():
        logprobs = likely(rows[place - 1])
        best = np.argsort(-logprobs, kind="stable")[:alternatives]
        assert logprob == pytest.approx(logprobs[prompt[place]], abs=5e-4)
        assert [token for token, _ in others] == best.tolist()
        assert [value for _, value in others] == pytest.approx(logprobs[best].tolist(), abs=5e-4)


def plain_pass(model: Model, prompt: Sequence[int]) -> list[np.ndarray]:
    """Logits after each token from one pass over a cache of its own."""
    count = len(prompt)
    kv = KVCache.allocate(model.config, 1, count)
    batch = Batch(
        token_ids=torch.tensor(prompt, dtype=torch.int64),
        positions=torch.arange(count),
        slots=torch.arange(count),
        seq_starts=torch.tensor([0, count], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        context_lens=torch.tensor([count], dtype=torch.int32),
        logit_rows=torch.arange(count),
    )
    with torch.inference_mode():
        return list(model.forward(batch, kv).numpy())


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.network.gate.set()
    bench.engine.close()


def rows_of(prompt: Sequence[int]) -> list[np.ndarray]:
    return [logits_after(list(prompt[: end + 1])) for end in range(len(prompt))]


@pytest.mark.parametrize(("length", "start", "alternatives"), [(2, 1, 1), (30, 1, 3), (30, 17, 20), (30, 29, 0), (200, 150, 2)])
def test_scores_are_the_log_softmax(bench: Bench, length: int, start: int, alternatives: int) -> None:
    prompt = [(7 * place) % VOCAB for place in range(length)]
    reading = read(bench.engine, prompt, start, alternatives)
    finished = reading.wait()
    expect(reading.scores, rows_of(prompt), prompt, start, alternatives)
    assert (finished.reason, finished.completion_tokens, finished.prompt_tokens) == ("length", 0, length)


def test_start_beyond_the_prompt_scores_nothing(bench: Bench) -> None:
    reading = read(bench.engine, [1, 2, 3], start=3)
    assert reading.wait().prompt_tokens == 3
    assert reading.scores == {}


def test_chunks_of_a_long_prompt_are_scored_across_their_borders(bench: Bench) -> None:
    prompt = [place % 89 for place in range(240)]
    reading = read(bench.engine, prompt)
    reading.wait()
    assert reading.parts > 1, "the prompt was not cut, so this test says nothing"
    expect(reading.scores, rows_of(prompt), prompt, 1, 3)


def test_what_is_cached_is_scored_again_and_what_is_before_is_not_computed(bench: Bench) -> None:
    prompt = list(range(40))
    first = read(bench.engine, prompt)
    assert first.wait().cached_tokens == 0
    bench.settle()
    again = read(bench.engine, prompt)
    assert again.wait().cached_tokens == 0
    assert again.scores == first.scores
    bench.settle()
    tail = read(bench.engine, prompt, start=25)
    # The row that scores token 25 is that of token 24.
    assert tail.wait().cached_tokens == 24
    assert tail.scores == {place: first.scores[place] for place in range(25, 40)}


def test_answer_after_a_scored_prompt_is_the_models(bench: Bench) -> None:
    prompt = list(range(20))
    reading = read(bench.engine, prompt, start=5, max_tokens=6)
    assert reading.wait().completion_tokens == 6
    assert reading.ids == greedy(prompt, 6)
    expect(reading.scores, rows_of(prompt), prompt, 5, 3)


def test_readings_and_answers_in_one_pass_do_not_mix(bench: Bench) -> None:
    bench.network.gate.clear()
    prompts = [[n, *range(n, n + 9)] for n in range(4)]
    readings = [read(bench.engine, prompt, start=n + 1) for n, prompt in enumerate(prompts)]
    runs = [bench.ask([200 + n, *range(9)]) for n in range(3)]
    late = read(bench.engine, prompts[0], max_tokens=4)
    bench.network.gate.set()
    for n, (reading, prompt) in enumerate(zip(readings, prompts, strict=True)):
        reading.wait()
        expect(reading.scores, rows_of(prompt), prompt, n + 1, 3)
    for n, run in enumerate(runs):
        run.wait()
        assert run.ids == greedy([200 + n, *range(9)], 8)
    late.wait()
    assert late.ids == greedy(prompts[0], 4)
    assert any(len(step) >= 4 for step in bench.network.passes), "nothing was computed together"


def test_preemption_changes_no_score_and_no_answer() -> None:
    bench = Bench(blocks=12, block_size=4)
    prompts = [[n] * 18 for n in range(5)]
    readings = [read(bench.engine, prompt, start=3, max_tokens=20) for prompt in prompts]
    for reading, prompt in zip(readings, prompts, strict=True):
        reading.wait()
        expect(reading.scores, rows_of(prompt), prompt, 3, 3)
        assert reading.ids == greedy(prompt, 20)
    assert any(reading.parts > 1 for reading in readings), "nothing was preempted, so this test says nothing"
    bench.settle()
    assert bench.engine.pool.used == 0
    bench.engine.close()


def test_real_layers_score_like_one_plain_pass(tiny: TinyModel, write_tiny: WriteTiny) -> None:
    """A tiny transformer: cut, cached and batched, against all logits of one pass."""
    model = load(write_tiny(replace(tiny, context=256)))
    engine = Engine(model, KVCache.allocate(model.config, 200, 4), 256)
    engine.start()
    rng = np.random.default_rng(5)
    long, short = rng.integers(0, 250, 150).tolist(), rng.integers(0, 250, 30).tolist()
    together = [(long, read(engine, long)), (short, read(engine, short))]
    for prompt, reading in together:
        reading.wait()
        expect(reading.scores, plain_pass(model, prompt), prompt, 1, 3)
    cached = read(engine, long, start=100)
    assert cached.wait().cached_tokens > 90
    expect(cached.scores, plain_pass(model, long), long, 100, 3)
    engine.close()
