"""262,144 tokens through the real scheduler: every checked row is what exact arithmetic over the whole context gives."""

from __future__ import annotations

import math
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from kcode_backend.config import RopeConfig
from kcode_backend.engine.engine import Engine
from kcode_backend.engine.pace import MAX_TOKENS
from kcode_backend.engine.request import (
    Event,
    Failed,
    Finished,
    Generation,
    Likelihood,
    Prefilled,
    Sampled,
    SamplingParams,
    Scored,
)
from kcode_backend.errors import OutOfContext
from kcode_backend.kv.cache import KVCache
from kcode_backend.kv.pool import BLOCK_TOKENS
from kcode_backend.layers.rope import RopeTable
from kcode_backend.models.load import load
from tests.backend.conftest import tiny_tensors

if TYPE_CHECKING:
    from tests.backend.conftest import TinyModel, WriteTiny

CONTEXT = 262_144
SCORED = 1_500
"""Tokens at the end of the prompt whose scores are wanted: the only rows that a chunk of a prompt shows."""
ALTERNATIVES = 16
TOLERANCE = 0.005
"""Of a logprob, for keys and values of 16 bits; a position that is off by one makes an error of 0.1 at least."""
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
FORKS = (4_097, 32_768, 65_537, 131_071, 131_072, 200_001)

Rows = NDArray[np.float64]


class ExactLayer:
    """A qwen2 model of one layer in float64, for single rows: each costs one pass over the keys of its context."""

    def __init__(self, tiny: TinyModel, ids: NDArray[np.int64]) -> None:
        assert tiny.layers == 1, "the keys of a second layer would cost the square of the context"
        self._tiny = tiny
        self._weights = {name: values.astype(np.float64) for name, values in tiny_tensors(tiny).items()}
        self._ids = ids
        self._keys = self._rotated(self._projected("k", ids), np.arange(len(ids)))
        self._values = self._projected("v", ids).reshape(len(ids), tiny.kv_heads, tiny.head_dim)

    def logprobs(self, place: int, moved: int = 0) -> Rows:
        """[vocab]: what the model holds of the token after `place`; `moved` puts its query elsewhere than its keys expect."""
        tiny, weights = self._tiny, self._weights
        one = self._ids[place : place + 1]
        q = self._rotated(self._projected("q", one), np.array([place + moved]))[0]
        group = tiny.heads // tiny.kv_heads
        heads: list[Rows] = []
        for head in range(tiny.heads):
            keys, values = self._keys[: place + 1, head // group], self._values[: place + 1, head // group]
            scores = keys @ q[head] / np.sqrt(tiny.head_dim)
            shares = np.exp(scores - scores.max())
            heads.append(shares @ values / shares.sum())
        x = weights["token_embd.weight"][one[0]] + weights["blk.0.attn_output.weight"] @ np.concatenate(heads)
        normed = _norm(x, weights["blk.0.ffn_norm.weight"])
        gate, up = weights["blk.0.ffn_gate.weight"] @ normed, weights["blk.0.ffn_up.weight"] @ normed
        x = x + weights["blk.0.ffn_down.weight"] @ (gate / (1 + np.exp(-gate)) * up)
        logits = weights["output.weight"] @ _norm(x, weights["output_norm.weight"])
        return logits - np.logaddexp.reduce(logits)

    def _projected(self, part: str, ids: NDArray[np.int64]) -> Rows:
        x = _norm(self._weights["token_embd.weight"], self._weights["blk.0.attn_norm.weight"])
        return (x @ self._weights[f"blk.0.attn_{part}.weight"].T + self._weights[f"blk.0.attn_{part}.bias"])[ids]

    def _rotated(self, states: Rows, positions: NDArray[np.int64]) -> Rows:
        """[n, heads * d] -> [n, heads, d], the halves of a head turned against each other."""
        width = self._tiny.head_dim
        x = states.reshape(len(states), -1, 2, width // 2)
        angles = positions[:, None] * self._tiny.theta ** -(np.arange(0, width, 2) / width)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        first, second = x[:, :, 0], x[:, :, 1]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def _norm(x: Rows, weight: Rows) -> Rows:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * weight


@dataclass
class Told:
    """What a request said, until its end."""

    events: queue.Queue[Event] = field(default_factory=queue.Queue)
    ids: list[int] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)
    scores: dict[int, Likelihood] = field(default_factory=dict)
    passes: int = 0

    def wait(self) -> Finished:
        while True:
            match self.events.get(timeout=300):
                case Scored(start, logprobs, alternatives):
                    for place, (logprob, best) in enumerate(zip(logprobs, alternatives, strict=True), start):
                        self.scores[place] = Likelihood(logprob, best)
                case Sampled(ids, likelihoods):
                    self.ids += ids
                    self.likelihoods += likelihoods
                case Prefilled():
                    self.passes += 1
                case Failed(message):
                    raise AssertionError(message)
                case Finished() as finished:
                    return finished


def ask(engine: Engine, ids: NDArray[np.int64], answer: int, scored_from: int | None = None) -> Told:
    told = Told()
    engine.submit(
        Generation(
            prompt=tuple(ids.tolist()),
            sink=told.events.put,
            sampling=SamplingParams(temperature=0),
            max_tokens=answer,
            likelihoods=ALTERNATIVES,
            scored_from=scored_from,
            alternatives=ALTERNATIVES,
        )
    )
    return told


@pytest.fixture
def sharp(tiny: TinyModel) -> TinyModel:
    """One layer whose rows attend to few tokens, so that an answer is made by single far positions rather than their mean."""
    return replace(
        tiny, layers=1, hidden=32, heads=2, kv_heads=1, mlp=32, context=CONTEXT + 64, theta=1e6, attention_scale=2.5, seed=7
    )


@pytest.fixture
def engine(sharp: TinyModel, write_tiny: WriteTiny) -> Iterator[Engine]:
    model = load(write_tiny(sharp))
    blocks = (CONTEXT + 64) // BLOCK_TOKENS
    engine = Engine(model, KVCache.allocate(model.config, blocks, BLOCK_TOKENS), CONTEXT + 64)
    engine.start()
    yield engine
    engine.close()


def _error(found: Likelihood, expected: Rows) -> float:
    """The largest among the alternatives."""
    return max(abs(logprob - expected[token]) for token, logprob in found.alternatives)


@pytest.mark.slow
def test_a_full_context_has_exact_positions(sharp: TinyModel, engine: Engine) -> None:
    ids = np.random.default_rng(3).integers(0, len(tiny_tensors(sharp)["token_embd.weight"]), CONTEXT)
    told = ask(engine, ids, 4, CONTEXT - SCORED)
    end = told.wait()
    assert (end.prompt_tokens, end.cached_tokens, end.completion_tokens) == (CONTEXT, 0, 4)
    assert told.passes >= CONTEXT // MAX_TOKENS, "it was not computed in chunks"

    exact = ExactLayer(sharp, np.append(ids, told.ids))
    places = [*range(CONTEXT - SCORED - 1, CONTEXT - 1, 97), CONTEXT - 2]
    errors = [_error(told.scores[place + 1], exact.logprobs(place)) for place in places]
    errors += [_error(one, exact.logprobs(CONTEXT - 1 + n)) for n, one in enumerate(told.likelihoods)]
    assert max(errors) < TOLERANCE, errors
    moved = [_error(told.scores[place + 1], exact.logprobs(place, moved=1)) for place in places]
    assert min(moved) > 10 * TOLERANCE, "a position more or less would not have been noticed"

    # Shorter contexts find all but their last token, which is computed over what the long one left.
    for length in FORKS:
        fork = ask(engine, ids[:length], 1)
        assert fork.wait().cached_tokens == length - 1
        assert _error(fork.likelihoods[0], exact.logprobs(length - 1)) < TOLERANCE, length
    assert engine.pool.used == 0


@pytest.mark.slow
def test_a_full_context_takes_the_blocks_it_needs_and_no_more(tiny: TinyModel, write_tiny: WriteTiny) -> None:
    """The pool has room for one such context: the answer ends with its last slot, and all blocks are there again."""
    model = load(write_tiny(replace(tiny, layers=1, context=CONTEXT)))
    blocks = CONTEXT // BLOCK_TOKENS
    engine = Engine(model, KVCache.allocate(model.config, blocks, BLOCK_TOKENS), 1 << 30)
    engine.start()
    try:
        assert engine.context_limit == CONTEXT
        ids = np.random.default_rng(4).integers(0, model.config.vocab, CONTEXT)
        with pytest.raises(OutOfContext, match=r"has 262144 tokens but the context holds 262144"):
            ask(engine, ids, 1)
        end = ask(engine, ids[:-3], 100).wait()
        assert (end.reason, end.prompt_tokens, end.completion_tokens) == ("length", CONTEXT - 3, 3)
        # The last token was drawn and never computed, so the last block is partial and cached all the same.
        assert (engine.pool.used, engine.pool.free, engine.pool.cached) == (0, 0, blocks)
        # Another context evicts from the end of the first one.
        other = ask(engine, np.flip(ids[: CONTEXT // 2]), 1).wait()
        assert other.cached_tokens < BLOCK_TOKENS
        assert (engine.pool.used, engine.pool.cached + engine.pool.free) == (0, blocks)
        again = ask(engine, ids[:-3], 1).wait()
        assert CONTEXT // 2 - 2 * BLOCK_TOKENS <= again.cached_tokens <= CONTEXT // 2
    finally:
        engine.close()


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_angles_of_the_last_positions_are_exact(theta: float) -> None:
    """Against 60 digits. In float32 an angle of 262,143 radians is known to a hundredth, and each key would be off by its own."""
    table = RopeTable(RopeConfig(theta=theta, dims=64)).covering(CONTEXT)
    assert table.shape == (CONTEXT, 64)
    rounded: list[float] = []
    with localcontext() as context:
        context.prec = 60
        for position in (CONTEXT - 1, CONTEXT - 2, 131_073):
            for pair in range(32):
                angle = position / (Decimal(theta) ** (Decimal(pair) / 32))
                small = float(angle % (2 * PI))
                rounded.append(abs(math.cos(np.float32(position) * np.float32(theta ** (-pair / 32))) - math.cos(small)))
                found = table[position, [pair, 32 + pair]].tolist()
                assert found == pytest.approx([math.cos(small), math.sin(small)], abs=1e-7), (position, pair)
    assert max(rounded) > 1e-3, "angles in float32 would have passed as well"
