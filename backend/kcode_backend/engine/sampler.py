"""Draws one token from one row of logits. The row and the sequence's own random numbers decide, nothing else in the batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from kcode_backend.engine.request import Likelihood, SamplingParams

_HEAD = 1024
"""Most likely tokens that are sorted first; top-p rarely needs more of a large vocabulary."""

Logits = NDArray[np.float32]
Probabilities = NDArray[np.float64]
Ids = NDArray[np.int64]


def draw(
    logits: Logits,
    params: SamplingParams,
    random: np.random.Generator,
    *,
    mask: NDArray[np.bool_] | None = None,
    banned: Collection[int] = (),
    seen: Collection[int] | None = None,
    counts: Mapping[int, int] | None = None,
) -> int:
    """The next token. `logits` [vocab] is overwritten.

    `mask` is True where the grammar allows an id and rules alone when given; otherwise `banned` ids are excluded. `seen` are
    the ids under the repetition penalty, `counts` how often the ids of the answer are in it. One random number is used unless
    the temperature is 0.
    Raises ValueError when no token is possible: the model gave no finite logit, or the mask allows nothing.
    """
    restrict(logits, mask, banned)
    for token, bias in params.bias:
        logits[token] += bias
    if counts:
        _discourage(logits, counts, params)
    if seen and params.repetition_penalty != 1.0:
        _penalize(logits, np.fromiter(seen, dtype=np.int64, count=len(seen)), params.repetition_penalty)
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise ValueError(
            "no token is possible: " + ("the grammar allows none" if mask is not None else "the logits are not finite")
        )
    if params.temperature <= 0:
        return best
    ids, probabilities = distribution(logits, params)
    cumulative = np.cumsum(probabilities)
    at = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
    return int(ids[min(at, len(ids) - 1)])


def restrict(logits: Logits, mask: NDArray[np.bool_] | None, banned: Collection[int]) -> None:
    """Leave only what the mask allows, or without one all but the banned ids."""
    if mask is not None:
        logits[~mask] = -np.inf
    elif banned:
        logits[list(banned)] = -np.inf


class Likelihoods:
    """What one row of restricted logits holds of each token; taken before `draw` overwrites the row."""

    def __init__(self, logits: Logits, alternatives: int) -> None:
        top = float(logits.max())
        self._values = logits - (top + float(np.log(np.exp((logits - top).astype(np.float64)).sum())))
        ids = np.argpartition(-logits, range(alternatives))[:alternatives] if alternatives else np.empty(0, dtype=np.int64)
        self._alternatives = tuple((int(i), float(self._values[i])) for i in ids if np.isfinite(self._values[i]))

    def of(self, token: int) -> Likelihood:
        return Likelihood(float(self._values[token]), self._alternatives)


def distribution(logits: Logits, params: SamplingParams) -> tuple[Ids, Probabilities]:
    """The ids that may be drawn and their probabilities, which sum to 1, after temperature, top-k, top-p and min-p."""
    ids = np.flatnonzero(np.isfinite(logits))
    scaled = logits[ids].astype(np.float64) / params.temperature
    if 0 < params.top_k < len(ids):
        kept = np.argpartition(scaled, len(ids) - params.top_k)[len(ids) - params.top_k :]
        # In the order of ids, so that the result does not depend on how the partition came out.
        kept.sort()
        ids, scaled = ids[kept], scaled[kept]
    weights = np.exp(scaled - scaled.max())
    probabilities = weights / weights.sum()
    if params.top_p < 1.0:
        kept = _nucleus(probabilities, params.top_p)
        ids, probabilities = ids[kept], probabilities[kept]
    if params.min_p > 0.0:
        kept = np.flatnonzero(probabilities >= params.min_p * probabilities.max())
        ids, probabilities = ids[kept], probabilities[kept]
    return ids, probabilities / probabilities.sum()


def _nucleus(probabilities: Probabilities, top_p: float) -> Ids:
    """Indices of the fewest most likely tokens that hold `top_p` together, most likely first."""
    head = np.arange(len(probabilities))
    if len(probabilities) > 2 * _HEAD:
        likely = np.argpartition(probabilities, len(probabilities) - _HEAD)[len(probabilities) - _HEAD :]
        if probabilities[likely].sum() >= top_p:
            head = np.sort(likely)
    ordered = head[np.argsort(-probabilities[head], kind="stable")]
    count = int(np.searchsorted(np.cumsum(probabilities[ordered]), top_p)) + 1
    return ordered[:count]


def _penalize(logits: Logits, seen: Ids, penalty: float) -> None:
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / penalty, values * penalty)


def _discourage(logits: Logits, counts: Mapping[int, int], params: SamplingParams) -> None:
    ids = np.fromiter(counts.keys(), dtype=np.int64, count=len(counts))
    times = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
    logits[ids] -= params.presence_penalty + params.frequency_penalty * times
