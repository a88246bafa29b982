"""The real model, for tests marked `model`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL_MODEL = "qwen2.5-coder-1.5b"


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The default model: KCODE_TEST_MODEL, or pulled once into .models of the checkout."""
    named = os.environ.get("KCODE_TEST_MODEL")
    if named:
        return Path(named)
    from kcode_backend import pull

    return pull.pull(REAL_MODEL, ROOT / ".models")
