"""Draws one token from one row of logits. The row and the sequence's own random numbers decide, nothing else in the batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from kcode_backend.engine.request import Likelihood, SamplingParams

_HEAD = 1024
"""Most likely tokens that are sorted first; top-p rarely needs more of a large vocabulary."""
_RUN = 256
_ROWS = 32
_REACH = 20.0
"""A token this many temperatures below the best has 2e-9 of its weight: a whole vocabulary of them has less than a thousandth."""
_ROUNDING = 1e-6
"""Relative error of sums of float32 weights, generously."""

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
    if params.top_p >= 1.0 and params.min_p <= 0.0 and not 0 < params.top_k < len(logits):
        return _draw_any(logits, params.temperature, random)
    ids, probabilities = distribution(logits, params)
    cumulative = np.cumsum(probabilities)
    at = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
    return int(ids[min(at, len(ids) - 1)])


def restrict(logits: Logits, mask: NDArray[np.bool_] | None, banned: Collection[int]) -> None:
    """Leave only what the mask allows, or without one all but the banned ids."""
    if mask is not None:
        np.copyto(logits, -np.inf, where=~mask)
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
    top = float(logits.max())
    total: float | None = None
    if 0 < params.top_k < len(logits):
        ids = _likeliest(logits, params.top_k)
        kept = np.argpartition(logits[ids], max(0, len(ids) - params.top_k))[-params.top_k :]
        # In the order of ids, so that the result does not depend on how the partition came out.
        ids = np.sort(ids[kept])
    elif params.top_p < 1.0:
        # Rarely more than the head is needed of a large vocabulary; of the rest the weight alone.
        ids = _likeliest(logits, _HEAD)
        head = np.sort(_exact_weights(logits[ids], top, params.temperature))[::-1].cumsum()
        total = _near_total(logits, top, params, head)
        if total is None:
            total = float(_weights(logits, top, params.temperature).sum(dtype=np.float64))
            if head[-1] < params.top_p * total * (1 + _ROUNDING):
                ids, total = np.flatnonzero(np.isfinite(logits)), None
    elif params.min_p > 0.0:
        ids = np.flatnonzero(logits >= top + params.temperature * (np.log(params.min_p) - _ROUNDING))
    else:
        ids = np.flatnonzero(np.isfinite(logits))
    probabilities = _exact_weights(logits[ids], top, params.temperature)
    probabilities /= probabilities.sum() if total is None else total
    if params.top_p < 1.0:
        kept = _nucleus(probabilities, params.top_p)
        ids, probabilities = ids[kept], probabilities[kept]
    if params.min_p > 0.0:
        kept = np.flatnonzero(probabilities >= params.min_p * probabilities.max())
        ids, probabilities = ids[kept], probabilities[kept]
    return ids, probabilities / probabilities.sum()


def _draw_any(logits: Logits, temperature: float, random: np.random.Generator) -> int:
    """A token of the unfiltered distribution: a run of the vocabulary first, then a token in it, so that little is summed up."""
    weights = _weights(logits, float(logits.max()), temperature)
    cumulative = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _RUN)), dtype=np.float64)
    wanted = random.random() * cumulative[-1]
    run = min(int(np.searchsorted(cumulative, wanted, side="right")), len(cumulative) - 1)
    inside = np.cumsum(weights[run * _RUN : (run + 1) * _RUN], dtype=np.float64)
    at = int(np.searchsorted(inside, wanted - (cumulative[run - 1] if run else 0.0), side="right"))
    # The sums differ by a rounding; past the end stands the last token that can be drawn at all.
    return run * _RUN + min(at, int(np.searchsorted(inside, inside[-1])))


def _near_total(logits: Logits, top: float, params: SamplingParams, head: Probabilities) -> float | None:
    """The weight of all tokens, as near as the end of the nucleus needs it, from few of them; None when it needs more.

    head: cumulated weights of the likeliest.
    """
    near = logits >= np.float32(top - _REACH * params.temperature)
    count = int(np.count_nonzero(near))
    if count > len(logits) // 8:
        return None
    least = float(_exact_weights(logits[near], top, params.temperature).sum())
    most = least + (len(logits) - count) * float(np.exp(-_REACH * (1 - _ROUNDING)))
    first, last = np.searchsorted(head, (params.top_p * least * (1 - _ROUNDING), params.top_p * most * (1 + _ROUNDING)))
    return least if first == last < len(head) else None


def _weights(logits: Logits, top: float, temperature: float) -> Logits:
    return np.exp((logits - np.float32(top)) * np.float32(1 / temperature))


def _exact_weights(logits: Logits, top: float, temperature: float) -> Probabilities:
    return np.exp((logits.astype(np.float64) - top) / temperature)


def _likeliest(logits: Logits, count: int) -> Ids:
    """In order, at least the `count` ids with the highest logits, and few more; all that are finite when those are fewer."""
    columns = len(logits) // _ROWS
    if count < columns:
        # Each column's highest is a logit of its own, so `count` logits reach the lowest of the `count` best columns.
        peaks = logits[: columns * _ROWS].reshape(_ROWS, columns).max(axis=0)
        reached = np.partition(peaks, columns - count)[columns - count]
        if np.isfinite(reached):
            return np.flatnonzero(logits >= reached)
    return np.flatnonzero(np.isfinite(logits))


def _nucleus(probabilities: Probabilities, top_p: float) -> Ids:
    """Indices of the fewest most likely tokens that hold `top_p` together, most likely first."""
    ordered = np.argsort(-probabilities, kind="stable")
    count = int(np.searchsorted(np.cumsum(probabilities[ordered]), top_p)) + 1
    return ordered[:count]


def _penalize(logits: Logits, seen: Ids, penalty: float) -> None:
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / penalty, values * penalty)


def _discourage(logits: Logits, counts: Mapping[int, int], params: SamplingParams) -> None:
    ids = np.fromiter(counts.keys(), dtype=np.int64, count=len(counts))
    times = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
    logits[ids] -= params.presence_penalty + params.frequency_penalty * times
