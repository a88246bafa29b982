"""How often experts in memory are found, foretold from choices counted before."""

from __future__ import annotations

import numpy as np
import pytest

from kcode_backend.residency import expected_hits

EXPERTS, USED = 384, 8


def choices(rng: np.random.Generator, likely: np.ndarray, tokens: int) -> np.ndarray:
    """How often each expert is chosen by tokens that choose `USED` different ones each."""
    logits = np.log(likely) + rng.gumbel(size=(tokens, EXPERTS))
    return np.bincount(np.argpartition(-logits, USED)[:, :USED].ravel(), minlength=EXPERTS).astype(np.float32)


@pytest.mark.parametrize("tokens", [24, 400])
@pytest.mark.parametrize("skew", [0.0, 0.5, 1.2])
def test_the_share_foretold_is_that_of_new_choices(skew: float, tokens: int) -> None:
    rng = np.random.default_rng(3)
    slots, differences = 60, []
    for _ in range(12):
        likely = rng.permutation(np.arange(1, EXPERTS + 1) ** -skew)
        counted, later = choices(rng, likely, tokens), choices(rng, likely, 2000)
        kept = np.argsort(-counted, kind="stable")[:slots]
        differences.append(expected_hits(counted[None], slots) - later[kept].sum() / later.sum())
    assert abs(np.mean(differences)) < 0.03


def test_without_choices_and_with_room_for_all() -> None:
    assert expected_hits(np.zeros((2, 8), np.float32), 4) == 0.25
    assert expected_hits(np.ones((2, 8), np.float32), 16) == 1.0
    assert expected_hits(np.array([[5, 5, 0, 0]], np.float32), 2) == 1.0
    # Choices that have faded say what they can.
    assert 0.5 <= expected_hits(np.array([[0.4, 0.3, 0.2, 0.0]], np.float32), 2) <= 1.0
