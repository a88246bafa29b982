"""The main job: a real model in our engine repairs an example inside our sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kcode_bench.demo import prepare

TASK = "A test fails. Find the bug and fix it."
TIMEOUT_S = 900


@pytest.mark.model
def test_the_real_model_fixes_an_example(tmp_path: Path, real_model: Path) -> None:
    workspace = prepare("shopping-cart", tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KCODE_")}
    environment = kept | {"KCODE_HOME": str(tmp_path / "home"), "KCODE_ENGINE_IDLE_S": "5"}
    command = [
        sys.executable,
        "-m",
        "kcode",
        "-p",
        TASK,
        "--cd",
        str(workspace),
        "-m",
        str(real_model),
        "--output-format",
        "json",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["status"] == "finished"
    assert document["usage"]["prompt_tokens"] > document["usage"]["cached_tokens"] > 0
    assert "cart.py" in document["diff"]
    assert "test_cart.py" not in document["diff"]
    tests = subprocess.run([sys.executable, "-m", "unittest", "-q"], cwd=workspace, capture_output=True, text=True, timeout=60)
    assert tests.returncode == 0, tests.stderr
