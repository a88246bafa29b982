"""The interface on a real terminal keeps its budget, with margins for machines that are slow and busy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from kcode_bench.tui_bench import BUDGETS, measure

MARGIN = 10


@pytest.mark.slow
def test_the_interface_keeps_its_budget_with_300_calls(tmp_path: Path) -> None:
    figures = asdict(measure(tmp_path))
    over = {name: figures[name] for name, budget in BUDGETS.items() if figures[name] > budget * MARGIN}
    assert not over, figures
