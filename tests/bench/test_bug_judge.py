from __future__ import annotations

import time
from pathlib import Path

import pytest

from kcode_bench.bug_run import judge
from kcode_bench.bug_set import Bug, load, read_manifest, run_project, write_repository


@pytest.fixture
def bug() -> Bug:
    return load(next(entry for entry in read_manifest() if entry.id == "057-monotonic"))


@pytest.fixture
def repository(bug: Bug, tmp_path: Path) -> Path:
    folder = tmp_path / "monotonic"
    write_repository(folder, bug)
    return folder


def test_only_the_module_counts(bug: Bug, repository: Path) -> None:
    (repository / "test_monotonic.py").write_text("import unittest\n")
    (repository / "sitecustomize.py").write_text("raise SystemExit(0)\n")
    assert judge(bug, repository).failed == bug.entry.failed
    (repository / "monotonic.py").write_text(bug.problem.source)
    assert judge(bug, repository).ok


def test_a_missing_or_linked_module_is_not_resolved(bug: Bug, repository: Path, tmp_path: Path) -> None:
    (repository / "monotonic.py").unlink()
    assert not judge(bug, repository).ok
    (tmp_path / "elsewhere.py").write_text(bug.problem.source)
    (repository / "monotonic.py").symlink_to(tmp_path / "elsewhere.py")
    assert not judge(bug, repository).ok


@pytest.mark.parametrize(
    "line", ["import os; os._exit(0)", "raise SystemExit(0)", "import sys; print('Ran 9 tests in 0s', file=sys.stderr)"]
)
def test_a_module_cannot_end_the_run_as_a_success(bug: Bug, line: str) -> None:
    run = run_project(bug.problem, f"{line}\n{bug.source}", 10)
    assert not run.ok
    assert run.failed > 0


def test_a_syntax_error_fails_every_test(bug: Bug) -> None:
    assert run_project(bug.problem, "def monotonic(:\n", 10).passed == 0


def test_an_endless_loop_ends_in_time(bug: Bug) -> None:
    started = time.monotonic()
    run = run_project(bug.problem, "import subprocess\nsubprocess.Popen(['sleep', '60'])\nwhile True:\n    pass\n", 2)
    assert (run.timed_out, run.ok, run.passed) == (True, False, 0)
    assert time.monotonic() - started < 45


def test_a_module_that_eats_memory_is_stopped(bug: Bug) -> None:
    assert not run_project(bug.problem, "def monotonic(l):\n    return [0] * (4 << 30)\n", 10).ok


def test_the_module_is_run_behind_walls(bug: Bug, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    source = f"try:\n    open({str(outside)!r}, 'w').close()\nexcept OSError:\n    pass\n{bug.problem.source}"
    assert run_project(bug.problem, source, 10).ok
    assert not outside.exists()
