"""Counts of observed values below fixed bounds, as Prometheus shows them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

STEP_BOUNDS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
FIRST_TOKEN_BOUNDS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(slots=True)
class Histogram:
    """Written by one thread. A reader on another may see the last observation in part."""

    bounds: tuple[float, ...]
    """Upper bounds, ascending; values beyond the last are counted too."""
    counts: list[int] = field(init=False)
    """One per bound and one for what lies beyond, not cumulative."""
    total: float = 0.0
    """The sum of all values."""

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
