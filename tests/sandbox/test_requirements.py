"""What docs/sandbox-requirements.md names as its proof exists."""

from __future__ import annotations

import re
from pathlib import Path

from kcode_bench.attacks.attack import read_attacks

ROOT = Path(__file__).parents[2]


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "sandbox-requirements.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| R")]


def test_every_requirement_has_a_row_with_a_proof_or_says_that_it_is_not_held() -> None:
    assert [row[0] for row in rows()] == [f"R{number}" for number in range(1, 30)]
    for number, _, proofs, missing in rows():
        assert proofs or missing.startswith("**not held**"), number


def test_what_is_named_as_proof_exists() -> None:
    attacks = {attack.id for attack in read_attacks()}
    proofs = " ".join(row[2] for row in rows())
    named = re.findall(r'attack "([^"]+)"', proofs)
    assert set(named) <= attacks, set(named) - attacks
    tests = re.findall(r"`(\w+\.py)::(\w+)`", proofs)
    assert len(named) > 20
    assert len(tests) > 30
    for file, test in tests:
        sources = [path.read_text() for path in (ROOT / "tests").rglob(file)]
        assert any(f"def {test}(" in source for source in sources), f"{file}::{test}"
    left = re.sub(r'attack "[^"]+"|`\w+\.py::\w+`|[, ]', "", proofs)
    assert left == "", f"neither a test nor an attack: {left}"
