"""Drawn tokens against distributions computed independently with numpy."""

from __future__ import annotations

import numpy as np
import pytest

from kcode_backend.engine.request import SamplingParams
from kcode_backend.engine.sampler import Likelihoods, distribution, draw, restrict

LOGITS = np.array([2.0, 1.5, 1.0, 0.0, -1.0, -3.0, 0.5, 1.2], dtype=np.float32)
DRAWS = 5_000


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def expected(params: SamplingParams) -> np.ndarray:
    """The distribution by definition, over a sorted copy of everything."""
    probabilities = softmax(LOGITS.astype(np.float64) / params.temperature)
    order = np.argsort(-probabilities)
    if params.top_k:
        probabilities[order[params.top_k :]] = 0
        probabilities /= probabilities.sum()
    if params.top_p < 1:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= params.top_p]] = 0
        probabilities /= probabilities.sum()
    probabilities[probabilities < params.min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.0, top_k=3),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.2),
        SamplingParams(temperature=0.7, top_k=6, top_p=0.9, min_p=0.05),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    random = np.random.default_rng(11)
    counts = np.zeros(len(LOGITS))
    for _ in range(DRAWS):
        counts[draw(LOGITS.copy(), params, random)] += 1
    wanted = expected(params)
    assert not counts[wanted == 0].any()
    possible = wanted > 0
    chi_square = float((((counts - DRAWS * wanted) ** 2)[possible] / (DRAWS * wanted[possible])).sum())
    # 99.99 % quantile for 7 degrees of freedom; fewer degrees stay below it too.
    assert chi_square < 29.9


def test_large_vocabulary_keeps_the_exact_nucleus() -> None:
    logits = np.random.default_rng(3).normal(0, 4, 50_000).astype(np.float32)
    for top_p in (0.3, 0.95, 0.999999):
        ids, probabilities = distribution(logits, SamplingParams(top_p=top_p))
        whole = softmax(logits.astype(np.float64))
        order = np.argsort(-whole, kind="stable")
        count = int((np.cumsum(whole[order]) < top_p).sum()) + 1
        assert set(ids.tolist()) == set(order[:count].tolist())
        assert np.allclose(probabilities, whole[ids] / whole[ids].sum())


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0])
def test_nucleus_is_exact_where_few_tokens_stand_out(temperature: float) -> None:
    """As in answers of a model: the nucleus is found without summing up everything, and none of it is lost or added."""
    rng = np.random.default_rng(12)
    for _ in range(20):
        logits = rng.normal(0, 2, 50_000).astype(np.float32)
        likely = rng.integers(0, 50_000, 40)
        logits[likely] += rng.uniform(8, 30, 40).astype(np.float32)
        whole = softmax(logits.astype(np.float64) / temperature)
        order = np.argsort(-whole, kind="stable")
        cumulated = np.cumsum(whole[order])
        # Just below and above a place where the nucleus ends, too.
        seam = float(cumulated[5])
        for top_p in (0.5, 0.95, 0.999, seam * (1 - 1e-5), min(seam * (1 + 1e-5), 0.9999999)):
            ids, probabilities = distribution(logits, SamplingParams(temperature=temperature, top_p=top_p))
            count = int((cumulated < top_p).sum()) + 1
            assert set(ids.tolist()) == set(order[:count].tolist())
            assert np.allclose(probabilities, whole[ids] / whole[ids].sum())


@pytest.mark.parametrize(("top_k", "min_p"), [(1, 0.0), (20, 0.0), (900, 0.0), (0, 0.001), (20, 0.05)])
def test_large_vocabulary_is_filtered_as_by_sorting_all_of_it(top_k: int, min_p: float) -> None:
    for scale in (0.01, 4.0):
        logits = np.random.default_rng(4).normal(0, scale, 50_003).astype(np.float32)
        logits[::7] = -np.inf
        ids, probabilities = distribution(logits, SamplingParams(temperature=0.7, top_k=top_k, min_p=min_p))
        whole = softmax(logits.astype(np.float64) / 0.7)
        if top_k:
            whole[np.argsort(-whole, kind="stable")[top_k:]] = 0
        whole[whole < min_p * whole.max()] = 0
        assert ids.tolist() == np.flatnonzero(whole).tolist()
        assert np.allclose(probabilities, whole[ids] / whole.sum())


def test_unfiltered_draws_follow_the_distribution_over_a_large_vocabulary() -> None:
    logits = np.random.default_rng(5).normal(0, 2, 3_001).astype(np.float32)
    logits[100:1500] = -np.inf
    chances = softmax(logits.astype(np.float64))
    random = np.random.default_rng(6)
    counts = np.zeros(len(logits))
    for _ in range(20_000):
        counts[draw(logits.copy(), SamplingParams(), random)] += 1
    assert not counts[100:1500].any()
    order = np.argsort(-chances)
    for group in np.array_split(order, 30):
        wanted = chances[group].sum() * 20_000
        assert abs(counts[group].sum() - wanted) < 5 * np.sqrt(wanted) + 1


def test_greedy_takes_the_best_and_uses_no_random_number() -> None:
    random = np.random.default_rng(1)
    before = random.bit_generator.state
    assert draw(LOGITS.copy(), SamplingParams(temperature=0), random) == 0
    assert random.bit_generator.state == before


def test_penalty_pushes_seen_tokens_down_on_both_sides_of_zero() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    random = np.random.default_rng(1)
    assert draw(LOGITS.copy(), params, random, seen={0}) == 1
    negative = np.array([-1.0, -1.5], dtype=np.float32)
    assert draw(negative, params, random, seen={0}) == 1


def test_mask_rules_over_banned_ids() -> None:
    random = np.random.default_rng(1)
    mask = np.zeros(len(LOGITS), dtype=bool)
    mask[5] = True
    assert draw(LOGITS.copy(), SamplingParams(), random, mask=mask, banned=[5]) == 5
    assert draw(LOGITS.copy(), SamplingParams(temperature=0), random, banned=[0, 1]) == 7


def test_impossible_draws_are_errors() -> None:
    random = np.random.default_rng(1)
    with pytest.raises(ValueError, match="the grammar allows none"):
        draw(LOGITS.copy(), SamplingParams(), random, mask=np.zeros(len(LOGITS), dtype=bool))
    with pytest.raises(ValueError, match="not finite"):
        draw(np.full(4, np.nan, dtype=np.float32), SamplingParams(), random)


def test_bias_and_penalties_move_the_logits_before_the_draw() -> None:
    random = np.random.default_rng(0)
    greedy = SamplingParams(temperature=0)
    assert draw(LOGITS.copy(), greedy, random) == 0
    assert draw(LOGITS.copy(), SamplingParams(temperature=0, bias=((0, -100.0), (4, 3.1))), random) == 4
    present = SamplingParams(temperature=0, presence_penalty=0.6)
    assert draw(LOGITS.copy(), present, random, counts={0: 9}) == 1
    assert draw(LOGITS.copy(), present, random, counts={5: 9}) == 0
    # 2 - 3 * 0.2 is below 1.5, 2 - 2 * 0.2 is not.
    frequent = SamplingParams(temperature=0, frequency_penalty=0.2)
    assert [draw(LOGITS.copy(), frequent, random, counts={0: times}) for times in (2, 3)] == [0, 1]


def test_likelihoods_are_those_of_what_is_allowed() -> None:
    row = LOGITS.copy()
    restrict(row, None, (0, 7))
    allowed = [1, 2, 3, 4, 5, 6]
    wanted = np.log(softmax(LOGITS[allowed].astype(np.float64)))
    likelihoods = Likelihoods(row, 3)
    assert likelihoods.of(4).logprob == pytest.approx(wanted[allowed.index(4)], abs=1e-6)
    assert [token for token, _ in likelihoods.of(4).alternatives] == [1, 2, 6]
    assert [value for _, value in likelihoods.of(1).alternatives] == pytest.approx(wanted[[0, 1, 5]], abs=1e-6)
    only = np.array([False, False, True, False, False, False, False, False])
    restrict(row, only, ())
    assert Likelihoods(row, 3).of(2).logprob == 0
    assert Likelihoods(row, 3).of(2).alternatives == ((2, 0.0),)
