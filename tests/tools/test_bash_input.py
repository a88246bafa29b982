"""Programs that want keys, driven in the session's real shell."""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kcode.tools.bash_input import key_code
from kcode.tools.refusal import Refusal
from kcode.tools.tool import Outcome

Call = Callable[..., Awaitable[Outcome]]
LOOKS = 60


async def until(call: Call, words: str, **first: object) -> str:
    """Type once, then look until `words` have come."""
    seen = (await call("bash_input", wait_s=0.3, **first)).text
    for _ in range(LOOKS):
        if words in seen:
            return seen
        seen += (await call("bash_input", wait_s=0.5)).text
    raise AssertionError(f"{words!r} did not come; seen: {seen}")


async def test_a_repl_is_asked_and_left(call: Call) -> None:
    started = await call("bash", command="python3 -q", timeout_s=1)
    assert "in the background as job" in started.text
    await until(call, "1764", text="print(42 * 42)\n")
    await until(call, "KeyboardInterrupt", text="import time; time.sleep(500)\n", keys=["C-c"])
    assert "ended with exit code 0" in await until(call, "exit code", keys=["C-d"])


async def test_a_pager_is_paged_and_left(call: Call, workspace: Path) -> None:
    (workspace / "long.txt").write_text("".join(f"line-{number}\n" for number in range(1, 501)))
    await call("bash", command="less long.txt", timeout_s=1)
    assert "line-500" in await until(call, "line-500", keys=["G"])
    await until(call, "exit code 0", text="q")


async def test_a_question_is_answered_by_job(call: Call) -> None:
    await call("bash", command="read -p 'name? ' name; echo \"hello $name\"; exit 3", timeout_s=1)
    assert "hello Ada" in await until(call, "exit code 3", text="Ada", keys=["Enter"])
    nothing = await call("bash_input", text="more")
    assert nothing.is_error
    assert "no program is running" in nothing.text


def three_commits(workspace: Path) -> None:
    for command in (
        "git init -q -b main",
        "git config user.email a@b.c",
        "git config user.name A",
        *[f"echo {number} > f{number} && git add . && git commit -qm c{number}" for number in range(3)],
    ):
        subprocess.run(command, shell=True, cwd=workspace, check=True)


async def test_an_interactive_rebase_is_edited(call: Call, workspace: Path) -> None:
    three_commits(workspace)
    editor = 'python3 -c \'import sys; p = sys.argv[1]; t = open(p).read(); a = input("keep? "); open(p, "w").write(a + "\\n")\''
    (workspace / "edit.sh").write_text(f'#!/bin/sh\nexec {editor} "$1" < /dev/tty\n')
    (workspace / "edit.sh").chmod(0o755)
    await call("bash", command="GIT_SEQUENCE_EDITOR=$PWD/edit.sh git rebase -i HEAD~2", timeout_s=1)
    last = (await call("bash", command="git log -1 --format=%h")).text.strip()
    await until(call, "exit code 0", text=f"pick {last}", keys=["Enter"])
    log = (await call("bash", command="git log --format=%s")).text
    assert log.split() == ["c2", "c0"]


def test_keys_have_the_names_people_use() -> None:
    pairs = {
        "Enter": "\n",
        "C-c": "\x03",
        "ctrl-d": "\x04",
        "^Z": "\x1a",
        "Up": "\x1b[A",
        "Escape": "\x1b",
        "q": "q",
        "M-f": "\x1bf",
    }
    assert {name: key_code(name) for name in pairs} == pairs
    with pytest.raises(Refusal, match="no key 'Hyper'"):
        key_code("Hyper")


async def test_lines_are_inserted_with_the_ends_of_the_file(call: Call, workspace: Path) -> None:
    path = workspace / "a.py"
    path.write_bytes(b"a = 1\r\nb = 2")
    assert "read it first" in (await call("insert", path="a.py", line=1, text="x = 0")).text
    await call("read", path="a.py")
    assert "Inserted lines 2-3" in (await call("insert", path="a.py", line=1, text="x = 0\ny = 0\n")).text
    assert path.read_bytes() == b"a = 1\r\nx = 0\r\ny = 0\r\nb = 2"
    await call("insert", path="a.py", line=4, text="c = (")
    assert path.read_bytes().endswith(b"b = 2\r\nc = (")
    assert "has 5 lines" in (await call("insert", path="a.py", line=9, text="c")).text


async def test_to_dos_are_the_whole_list(call: Call) -> None:
    outcome = await call("todo", items=[{"text": "read", "status": "done"}, {"text": "fix", "status": "doing"}])
    assert outcome.text == "[x] read\n[>] fix"
