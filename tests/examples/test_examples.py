"""Each example has a bug that its tests catch, and a fix in one function that makes them pass."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kcode.tools.testing.run import run_project_tests
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.policy import Policy

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir() if path.is_dir())
FIXES = ROOT / "tests" / "data" / "example_fixes"


def test_there_are_python_and_javascript_examples() -> None:
    assert len(EXAMPLES) >= 4
    assert sorted(path.stem for path in FIXES.glob("*.patch")) == EXAMPLES


def tree(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def copy_example(name: str, folder: Path) -> Path:
    project = folder.resolve() / name
    shutil.copytree(ROOT / "examples" / name, project)
    return project


def apply_fix(name: str, project: Path) -> None:
    subprocess.run(["git", "apply", str(FIXES / f"{name}.patch")], cwd=project, check=True)


@pytest.mark.parametrize("name", EXAMPLES)
async def test_example_fails_before_and_passes_after_its_fix(name: str, tmp_path: Path) -> None:
    if name.endswith("-js") and shutil.which("node") is None:
        pytest.skip("node is not installed")
    project = copy_example(name, tmp_path)
    before = tree(project)
    sandbox = open_sandbox(Policy(project))
    await sandbox.start()
    try:
        broken = await run_project_tests(sandbox, None, timeout_s=60)
        apply_fix(name, project)
        fixed = await run_project_tests(sandbox, None, timeout_s=60)
    finally:
        await sandbox.close()

    assert broken.problem == ""
    assert broken.errors + broken.failed >= 1
    assert broken.passed >= 2
    assert all(test.frames for test in broken.failing)
    assert fixed.ok, fixed.text()
    assert fixed.passed == broken.passed + broken.failed + broken.errors
    assert tree(project) == before, "the tests left files behind"
