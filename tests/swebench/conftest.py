"""A small project in a bare repository with a past and a future, its task as a row, and kcode as a process over them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TIMEOUT_S = 300
FUTURE = "future-marker-7c1d"
HINT = "hint-marker-55ab"
BROKEN = "def add(a, b):\n    return a - b\n\n\ndef double(a):\n    return a * 2\n"
FIXED = BROKEN.replace("a - b", "a + b")
OLD_TESTS = """\
import unittest

from calc import double


class CalcTest(unittest.TestCase):
    def test_double(self):
        self.assertEqual(double(4), 8)
"""
NEW_TESTS = """\
import unittest

from calc import add, double


class CalcTest(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(2, 3), 5)

    def test_double(self):
        self.assertEqual(double(4), 8)
"""
SPECS = f"""\
[[spec]]
repos = ["acme/calc"]
python = "{sys.version_info[0]}.{sys.version_info[1]}"
pins = []
install = ["touch left_by_installation"]
test = "python -m unittest -v"
parser = "django"
"""
INSTANCE = "acme__calc-1"
F2P, P2P = "test_add (test_calc.CalcTest.test_add)", "test_double (test_calc.CalcTest.test_double)"


@dataclass(frozen=True, slots=True)
class Project:
    """`rows` is one row's columns; tests change a copy."""

    source: Path
    row: dict[str, object]


def git(folder: Path, *arguments: str) -> str:
    identity = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", **identity}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def _commit(folder: Path, message: str, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", message)
    return git(folder, "rev-parse", "HEAD").strip()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """acme/calc: a past, the base commit, and a future that holds the fix and a tag."""
    work = tmp_path / "made"
    work.mkdir()
    git(work, "init", "--quiet", "--initial-branch=trunk")
    _commit(work, "past", {"readme.txt": "calc\n"})
    base = _commit(work, "base", {"calc.py": BROKEN, "test_calc.py": OLD_TESTS})
    (work / "calc.py").write_text(FIXED)
    patch = git(work, "diff")
    git(work, "checkout", "--quiet", "calc.py")
    (work / "test_calc.py").write_text(NEW_TESTS)
    test_patch = git(work, "diff")
    git(work, "checkout", "--quiet", "test_calc.py")
    _commit(work, FUTURE, {"calc.py": FIXED, "test_calc.py": NEW_TESTS, "notes.txt": FUTURE})
    git(work, "tag", "v9")
    source = tmp_path / "sources"
    source.mkdir()
    git(tmp_path, "clone", "--quiet", "--bare", str(work), str(source / "acme+calc"))
    row: dict[str, object] = {
        "repo": "acme/calc",
        "instance_id": INSTANCE,
        "base_commit": base,
        "patch": patch,
        "test_patch": test_patch,
        "problem_statement": "add(2, 3) gives -1",
        "hints_text": HINT,
        "version": "1.0",
        "FAIL_TO_PASS": json.dumps([F2P]),
        "PASS_TO_PASS": json.dumps([P2P]),
    }
    return Project(source, row)


@dataclass(frozen=True, slots=True)
class Bench:
    """`kcode swebench` as a user runs it, with its own home and everything in one folder. Without walls unless asked for."""

    folder: Path
    project: Project

    def dataset(self, *rows: dict[str, object]) -> Path:
        file = self.folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows or (self.project.row,)))
        return file

    def script(self, *replies: dict[str, object]) -> str:
        file = self.folder / f"script{len(list(self.folder.glob('script*')))}.json"
        file.write_text(json.dumps({"replies": replies}))
        return f"scripted:{file}"

    def start(self, what: str, *arguments: str, kind: str = "venv") -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KCODE_", "COV_"))}
        (self.folder / "specs.toml").write_text(SPECS)
        ground = [] if what in {"report", "export"} else self._ground(kind)
        return subprocess.run(
            [sys.executable, "-m", "kcode", "swebench", what, *ground, *arguments],
            cwd=self.folder,
            env=kept | {"KCODE_HOME": str(self.folder / "home")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def _ground(self, kind: str) -> list[str]:
        rows = self.folder / "rows.jsonl"
        dataset = str(rows if rows.exists() else self.dataset())
        ground = ["--dataset", dataset, "--repo-source", str(self.project.source), "--specs", "specs.toml", "--env", kind]
        return [*ground, "--env-dir", str(self.folder / "places"), "--json"]


@pytest.fixture
def bench(tmp_path: Path, project: Project) -> Bench:
    folder = tmp_path / "bench"
    folder.mkdir()
    return Bench(folder, project)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The last line of --json."""
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found
