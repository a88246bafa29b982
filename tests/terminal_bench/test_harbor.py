"""kcode's classes for Harbor, with Harbor itself, which needs Python 3.12: KCODE_TEST_HARBOR names a `harbor` program beside
which kcode is installed; else the one on PATH counts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.terminal_bench.conftest import DOCKERFILE, harbor_task

HARBOR = os.environ.get("KCODE_TEST_HARBOR") or shutil.which("harbor") or ""
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("", "backend", "sandbox", "swebench", "prompts")
ENVIRONMENT = "kcode_bench.harbor.environment:BwrapEnvironment"
TOML = '[agent]\ntimeout_sec = 120.0\n[verifier]\ntimeout_sec = 60.0\n[environment]\nnetwork_mode = "no-network"\n'

pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(
        not HARBOR, reason="no harbor: pip install harbor on Python 3.12 or newer, and name it in KCODE_TEST_HARBOR"
    ),
]


def run_harbor(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KCODE_", "COV_", "PYTHON"))}
    paths = os.pathsep.join(str(ROOT / name) for name in PACKAGES)
    return subprocess.run(
        [HARBOR, "run", "-p", "tasks/second", "-n", "1", "-o", "jobs", "--job-name", "one", *arguments],
        cwd=folder,
        env=kept | {"HOME": str(folder), "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def result_of(folder: Path, done: subprocess.CompletedProcess[str]) -> tuple[Path, dict[str, object]]:
    found = sorted((folder / "jobs" / "one").glob("second__*/result.json"))
    assert found, done.stdout + done.stderr
    document: dict[str, object] = json.loads(found[0].read_text())
    return found[0].parent, document


def test_harbor_runs_the_solution_in_our_environment(tmp_path: Path) -> None:
    harbor_task(tmp_path / "tasks" / "second", **{"task.toml": TOML})
    done = run_harbor(tmp_path, "-a", "oracle", "-e", ENVIRONMENT)
    _, result = result_of(tmp_path, done)
    assert (result["verifier_result"], result["exception_info"]) == ({"rewards": {"reward": 1.0}}, None), done.stdout


def test_harbor_refuses_what_takes_a_container(tmp_path: Path) -> None:
    dockerfile = "FROM python:3.13\nRUN pip install numpy\nWORKDIR /app\n"
    harbor_task(tmp_path / "tasks" / "second", **{"task.toml": TOML, "environment/Dockerfile": dockerfile})
    done = run_harbor(tmp_path, "-a", "oracle", "-e", ENVIRONMENT)
    said = "".join((done.stdout + done.stderr).replace("│", "").split())
    assert "Dockerfile:2:RUNpipinstallnumpy:itinstallspackages" in said


def test_kcode_is_installed_and_works_there(tmp_path: Path) -> None:
    call = {"name": "bash", "arguments": {"command": "cat /data/made.txt; echo Hello > hello.txt"}}
    finish = {"name": "finish", "arguments": {"summary": "done"}}
    script = json.dumps({"replies": [{"calls": [call]}, {"calls": [finish]}]})
    files = {"task.toml": TOML, "environment/script.json": script, "environment/Dockerfile": DOCKERFILE + "COPY script.json ./\n"}
    harbor_task(tmp_path / "tasks" / "second", **files)
    agent = "kcode_bench.harbor.installed:KcodeInstalled"
    done = run_harbor(tmp_path, "-a", agent, "-e", ENVIRONMENT, "--ak", "model=scripted:/app/script.json")
    folder, result = result_of(tmp_path, done)
    assert (result["verifier_result"], result["exception_info"]) == ({"rewards": {"reward": 1.0}}, None), done.stdout
    given = result["agent_result"]
    assert isinstance(given, dict)
    assert given["metadata"]["status"] == "finished"
    assert given["n_output_tokens"] > 0
    assert json.loads((folder / "agent" / "trajectory.json").read_text())["schema_version"] == "ATIF-v1.8"
