"""The ATIF export, read by the models of the project that defines the format."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.headless.conftest import Inside, Program

HARBOR = "HARBOR_PYTHON"
"""Environment variable: an interpreter (3.12 or newer) that has the package harbor."""
READ = """
import sys
from harbor.models.trajectories import Trajectory
print(len(Trajectory.model_validate_json(sys.stdin.read()).steps))
"""


@pytest.mark.peer
@pytest.mark.skipif(HARBOR not in os.environ, reason=f"{HARBOR} names no interpreter with harbor")
def test_an_exported_session_is_a_trajectory_for_harbor(
    inside: Inside, program: Program, fixing: tuple[dict[str, object], ...]
) -> None:
    assert inside("-p", "fix add", "-m", program.script(*fixing))[0] == 0
    code, out, err = inside("export", "--format", "atif")
    assert code == 0, err
    command = [os.environ[HARBOR], "-c", READ]
    read = subprocess.run(command, input=out, capture_output=True, text=True, timeout=300, check=False)
    assert read.returncode == 0, read.stderr[-2000:]
    assert int(read.stdout) >= 4, "the request and three answers"
