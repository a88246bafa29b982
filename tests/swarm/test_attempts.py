"""Attempts from the outside: a scripted model, real clones, the project's own tests."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import pytest

from kcode.command_line import run_command_line
from kcode.opening import Sessions
from kcode.paths import find_paths
from kcode.settings import Settings

BROKEN = "def add(a, b):\n    return a - b\n\n\ndef double(a):\n    return a + a\n"
TESTS = """
import unittest
import calc

class CalcTest(unittest.TestCase):
    def test_add(self):
        self.assertEqual(calc.add(1, 2), 3)

    def test_double(self):
        self.assertEqual(calc.double(2), 4)
"""


class Tried(TypedDict):
    number: int
    seed: int
    verdict: str
    diff_lines: int


class Document(TypedDict):
    tried: list[Tried]
    attempts: int
    winner: int | None
    status: str
    reason: str
    result: str
    diff: str
    compactions: list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Document:
        return json.loads(self.stdout)


@dataclass(frozen=True, slots=True)
class Program:
    """`kcode` as its command line runs it, with the default sandbox."""

    workspace: Path
    home: Path
    capture: pytest.CaptureFixture[str]

    def run(self, *arguments: str, replies: list[dict[str, object]], context_limit: int = 32768) -> Done:
        script = self.home.parent / "script.json"
        script.write_text(json.dumps({"replies": replies, "context_limit": context_limit}))
        code = run_command_line(["-p", "fix add", "-m", f"scripted:{script}", *arguments, "--output-format", "json"])
        captured = self.capture.readouterr()
        return Done(code, captured.out, captured.err)

    def kept(self) -> Path:
        """The folder in which the attempts' patches lie."""
        (folder,) = (self.home / "state" / "sessions").glob("*/*.attempts")
        return folder

    def calc(self) -> str:
        return (self.workspace / "calc.py").read_text()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    workspace = tmp_path.resolve() / "workspace"
    workspace.mkdir()
    (workspace / "calc.py").write_text(BROKEN)
    (workspace / "test_calc.py").write_text(TESTS)
    for name in [name for name in os.environ if name.startswith("KCODE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KCODE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(workspace)
    return Program(workspace, tmp_path / "home", capsys)


def edit(old: str, new: str, path: str = "calc.py") -> dict[str, object]:
    """One step that replaces text, after reading it."""
    read = {"name": "read", "arguments": {"path": path}}
    return {"calls": [read, {"name": "str_replace", "arguments": {"path": path, "old": old, "new": new}}]}


def attempt(*edits: dict[str, object], said: str = "done") -> list[dict[str, object]]:
    return [*edits, {"text": said}]


WRONG = attempt(edit("a - b", "a * b"), said="wrong")
RIGHT = attempt(edit("a - b", "a + b"), said="right")
LONG = attempt(edit("    return a - b", "    total = a + b\n    return total"), said="long")


def test_the_first_attempt_that_passes_is_merged_and_the_losers_patch_is_kept(program: Program) -> None:
    done = program.run("--attempts", "3", "--seed", "7", replies=[*WRONG, *RIGHT])
    assert done.code == 0, done.stderr
    document = done.document
    tried = [(item["number"], item["seed"], item["verdict"], item["diff_lines"]) for item in document["tried"]]
    assert tried == [(1, 7, "failed", 2), (2, 8, "passed", 2)]
    assert (document["winner"], document["attempts"]) == (2, 2)
    assert (document["status"], document["result"]) == ("finished", "right")
    assert program.calc() == BROKEN.replace("a - b", "a + b")
    assert "-    return a - b\n+    return a + b\n" in document["diff"]
    assert "+    return a * b" in (program.kept() / "1.patch").read_text()
    assert "+    return a + b" in (program.kept() / "2.patch").read_text()
    assert sorted(path.name for path in program.workspace.iterdir()) == ["calc.py", "test_calc.py"]
    taken_back, messages = asyncio.run(undo(program))
    assert (program.calc(), messages) == (BROKEN, 1), taken_back


async def undo(program: Program) -> tuple[str, int]:
    """Take the turn back that is the session's last one, as `/undo` does."""
    script = program.home.parent / "script.json"
    paths = find_paths({"KCODE_HOME": str(program.home)})
    settings = Settings(sandbox="danger-full-access")
    session = await Sessions(settings, program.workspace, paths, "auto").open("", f"scripted:{script}", None)
    try:
        said = [message.text for message in session.messages if message.role == "assistant"]
        assert said == ["", "right"]
        return await session.undo(), len(session.messages)
    finally:
        await session.close()


@pytest.mark.slow
def test_of_all_attempts_the_smallest_diff_counts(program: Program) -> None:
    done = program.run("--attempts", "3", "--all-attempts", replies=[*LONG, *RIGHT, *WRONG])
    document = done.document
    assert (done.code, document["winner"]) == (0, 2)
    assert [(item["verdict"], item["diff_lines"]) for item in document["tried"]] == [
        ("passed", 3),
        ("passed", 2),
        ("failed", 2),
    ]
    assert program.calc() == BROKEN.replace("a - b", "a + b")


@pytest.mark.slow
def test_without_a_passing_attempt_the_tree_stays_and_the_best_patch_is_named(program: Program) -> None:
    both = attempt(edit("a - b", "a * b"), edit("a + a", "a + a + a"))
    done = program.run("--attempts", "2", replies=[*both, *WRONG])
    document = done.document
    assert (done.code, document["status"], document["winner"], document["diff"]) == (3, "limit", None, "")
    assert str(program.kept() / "2.patch") in document["reason"]
    assert program.calc() == BROKEN
    kept = program.run("--attempts", "1", "--keep-best", replies=WRONG)
    assert (kept.code, kept.document["winner"]) == (3, None)
    assert "a * b" in program.calc()


def test_an_attempt_that_removes_the_failing_test_does_not_pass(program: Program) -> None:
    test = "    def test_add(self):\n        self.assertEqual(calc.add(1, 2), 3)\n\n"
    cheating = attempt(edit(test, "", "test_calc.py"))
    done = program.run("--attempts", "1", replies=cheating)
    document = done.document
    assert (done.code, document["winner"]) == (3, None)
    assert (program.workspace / "test_calc.py").read_text() == TESTS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--attempts", "0"), "--attempts 0: it must be between 1 and 100"),
        (("--attempts", "2", "-c"), "--attempts begins anew"),
        (("--attempts", "2", "--sandbox", "danger-full-access"), "--attempts works in copies of the workspace"),
        (("--attempts", "2", "--sandbox-backend", "landlock"), "--attempts works in copies of the workspace"),
        (("--all-attempts",), "--all-attempts and --keep-best go with --attempts N"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_one_sentence(program: Program, arguments: tuple[str, ...], said: str) -> None:
    done = program.run(*arguments, replies=RIGHT)
    assert (done.code, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert said in done.stderr
    assert program.calc() == BROKEN


@pytest.mark.slow
def test_the_compactions_of_all_attempts_are_told(program: Program) -> None:
    (program.workspace / "big.txt").write_text("".join(f"line {number} of the big file\n" for number in range(370)))
    look: list[dict[str, object]] = [
        {"calls": [{"name": "bash", "arguments": {"command": f"cat big.txt # {number}"}}]} for number in range(3)
    ]
    note = {"text": "I have read the big file."}
    done = program.run("--attempts", "2", replies=[*look, note, *WRONG, *look, note, *RIGHT], context_limit=9_000)
    assert done.code == 0, done.stderr
    assert [told["by"] for told in done.document["compactions"]] == ["model", "model"]
