"""What further rows of a pass cost is learnt from those that were seen."""

from __future__ import annotations

import pytest

from kcode_backend.engine.speculative import RowCost


@pytest.mark.parametrize("row", [0.05, 0.9])
def test_a_few_passes_tell_what_other_numbers_of_rows_cost(row: float) -> None:
    cost = RowCost()
    for rows in (1, 1, 3, 1, 4, 3, 1, 4, 3, 4, 3, 4):
        cost.observe(rows, 0.1 * (1 + row * (rows - 1)))
    assert (cost.estimate(17) - 1) / 16 == pytest.approx(row, abs=0.2)


def test_rows_that_seemed_dear_are_tried_again() -> None:
    cost = RowCost()
    for _ in range(20):
        cost.observe(1, 0.1)
        cost.observe(5, 1.0)
    dear = cost.estimate(5)
    for _ in range(600):
        cost.observe(1, 0.1)
    assert cost.estimate(5) < 3.5 < dear
