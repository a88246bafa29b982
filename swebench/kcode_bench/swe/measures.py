"""What counts of resolved instances are worth: intervals, pass@k, and whether two runs differ by more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Share:
    """A share of `count` instances, with the Wilson score interval of 95 % around it; without instances that is 0 to 1."""

    value: float
    low: float
    high: float
    count: int

    def document(self) -> dict[str, object]:
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6), "instances": self.count}

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}, {self.count} instances)"


def share(shares: Sequence[float]) -> Share:
    """The mean of one figure from 0 to 1 per instance. Instances are what is drawn: further attempts at one narrow nothing."""
    count = len(shares)
    if not count:
        return Share(0.0, 0.0, 1.0, 0)
    value = sum(shares) / count
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = value + z * z / (2 * count)
    spread = z * sqrt(value * (1 - value) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return Share(value, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale), count)


def pass_at(k: int, tried: int, resolved: int) -> float:
    """The probability that one of `k` attempts, drawn from the `tried` of which `resolved` succeeded, succeeds. k <= tried."""
    return 1.0 - comb(tried - resolved, k) / comb(tried, k)


def sign_test(better: int, worse: int) -> float:
    """The two-sided p-value that so uneven a split of the changed instances, or a more uneven one, is chance.

    With one attempt per instance this is McNemar's exact test. 1.0 when nothing changed.
    """
    changed = better + worse
    tail = sum(comb(changed, count) for count in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**changed)
