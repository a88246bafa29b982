"""The program as a user runs it: a process with its own home, a workspace, and a scripted model."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kcode.command_line import run_command_line

TIMEOUT_S = 300
Inside = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True, slots=True)
class Program:
    """Starts `kcode` in the workspace; the sandbox is off unless a test asks for it, so that every machine can run these."""

    workspace: Path
    home: Path
    scripts: Path

    def script(self, *replies: dict[str, object], **options: object) -> str:
        """Write a script and return the model's name for it."""
        path = self.scripts / f"script{len(list(self.scripts.iterdir()))}.json"
        path.write_text(json.dumps({"replies": replies, **options}))
        return f"scripted:{path}"

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KCODE_", "COV_"))}
        return kept | {"KCODE_HOME": str(self.home), "KCODE_SANDBOX": "danger-full-access"} | more

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kcode", *arguments],
            cwd=self.workspace,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kcode", *arguments],
            cwd=self.workspace,
            env=self.environment(**environment),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def on_terminal(self, *arguments: str, typed: str = "") -> tuple[int, str]:
        """Exit code and standard error, which is no terminal, as the other streams are."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "kcode", *arguments],
            cwd=self.workspace,
            env=self.environment(),
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(theirs)
        try:
            os.write(ours, typed.encode())
            _, error = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
            process.communicate()
            os.close(ours)
        return process.returncode, error

    def transcripts(self) -> list[Path]:
        return sorted((self.home / "state" / "sessions").rglob("*.jsonl"))


@pytest.fixture
def program(tmp_path: Path) -> Program:
    folders = [tmp_path / name for name in ("workspace", "home", "scripts")]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    return Program(*folders)


@pytest.fixture
def fixing() -> tuple[dict[str, object], ...]:
    """Replies that repair calc.py."""
    edit = {"name": "str_replace", "arguments": {"path": "calc.py", "old": "a - b", "new": "a + b"}}
    return (
        {"text": "I look first.", "calls": [{"name": "read", "arguments": {"path": "calc.py"}}]},
        {"calls": [edit]},
        {"calls": [{"name": "finish", "arguments": {"summary": "add adds now"}}]},
    )


@pytest.fixture
def inside(program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Runs a command line in this process: exit code, stdout, stderr."""
    for name in [name for name in os.environ if name.startswith("KCODE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KCODE_HOME", str(program.home))
    monkeypatch.setenv("KCODE_SANDBOX", "danger-full-access")
    monkeypatch.chdir(program.workspace)

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = run_command_line(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
