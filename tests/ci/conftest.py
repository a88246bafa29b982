"""A repository with a bug, and `kcode ci` as a user runs it: a process with its own home and a scripted model."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kcode.command_line import run_command_line

TIMEOUT_S = 300
Json = dict[str, object]
TEST = "python3 -m unittest"
PYTEST = f"PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 {sys.executable} -m pytest -q"
CALC = "def add(a, b):\n    return a - b\n\n\ndef double(a):\n    return 2 * a\n"
TESTS = """import unittest

from calc import add, double


class CalcTest(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(1, 2), 3)

    def test_double(self):
        self.assertEqual(double(2), 4)
"""


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True, slots=True)
class Ended:
    """`summary` is the JSON object of the last line of standard output, {} when there was none."""

    code: int
    summary: dict[str, object]
    stdout: str
    stderr: str
    output: Path

    @property
    def faults(self) -> list[str]:
        attempts = self.summary["attempts"]
        assert isinstance(attempts, list)
        return [str(attempt["fault"]) for attempt in attempts]


@dataclass(frozen=True, slots=True)
class Place:
    """`checkout` is the user's, with everything committed."""

    checkout: Path
    folder: Path

    def commit(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.checkout / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.commit_all()

    def commit_all(self) -> None:
        git(self.checkout, "add", "-A")
        git(self.checkout, "commit", "-q", "--allow-empty", "-m", "as it is")

    def environment(self, **more: str) -> dict[str, str]:
        dropped = ("KCODE_", "COV_", "GITHUB_", "CI_", "PYTEST_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        # What PATH does not lead to is not there inside: the Python that has pytest is, as in an activated environment.
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
        return kept | {"KCODE_HOME": str(self.folder / "home"), "PATH": path} | more

    def run(self, replies: list[Json], *arguments: str, test: str = TEST, stdin: str = "", **environment: str) -> Ended:
        script = self.folder / "script.json"
        script.write_text(json.dumps({"replies": replies}))
        output = self.folder / "out"
        said = [f"--test={test}", "--json", f"--output-dir={output}", f"--model=scripted:{script}", *arguments]
        done = subprocess.run(
            [sys.executable, "-m", "kcode", "ci", *said],
            cwd=self.checkout,
            env=self.environment(**environment),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        last = (done.stdout.strip().splitlines() or [""])[-1]
        return Ended(done.returncode, json.loads(last) if last.startswith("{") else {}, done.stdout, done.stderr, output)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    checkout = tmp_path.resolve() / "project"
    checkout.mkdir()
    git(checkout, "init", "-q", "-b", "main")
    found = Place(checkout, tmp_path.resolve())
    found.commit({"calc.py": CALC, "test_calc.py": TESTS})
    return found


Inside = Callable[..., tuple[int, str, str]]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Runs `kcode ci` in this process: exit code, stdout, stderr."""
    for name in [name for name in os.environ if name.startswith(("KCODE_", "GITHUB_"))]:
        monkeypatch.delenv(name)

    def run(place: Place, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
        for name, value in (environment or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("KCODE_HOME", str(place.folder / "home"))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
        monkeypatch.chdir(place.checkout)
        code = run_command_line(["ci", "--test=true", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def bash(*commands: str) -> list[Json]:
    """Replies that run these commands, whatever comes of them, and end."""
    steps: list[Json] = [{"calls": [{"name": "bash", "arguments": {"command": command}}]} for command in commands]
    return [*steps, {"text": "I did as I was told."}]


FIX = "sed -i 's/a - b/a + b/' calc.py"
