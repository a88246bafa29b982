"""bash and git."""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kcode.models.scripted import Script, ScriptedModel
from kcode.tools.tool import Outcome
from kcode.tools.toolbox import build_tools
from kcode.tools.truncate import OUTPUT_CHARS, head_and_tail, plain
from kcode_sandbox.sandbox import Sandbox

Call = Callable[..., Awaitable[Outcome]]


async def test_the_shell_keeps_folder_and_variables(call: Call, workspace: Path) -> None:
    (workspace / "sub").mkdir()
    await call("bash", command="cd sub && export COLOR=green")
    assert (await call("bash", command="basename $PWD; echo $COLOR")).text == "sub\ngreen"


async def test_exit_codes_and_silence_are_told(call: Call) -> None:
    failed = await call("bash", command="echo oops; (exit 3)")
    assert failed.text == "oops\n[exit code 3]"
    assert failed.is_error
    assert (await call("bash", command="true")).text == "[no output, exit code 0]"


async def test_long_output_is_cut_and_kept_in_a_file(call: Call) -> None:
    text = (await call("bash", command="seq 1 20000")).text
    assert len(text) < OUTPUT_CHARS + 200
    assert text.startswith("1\n2\n3\n")
    assert text.endswith("\n19999\n20000")
    path = text.split("all of it is in ")[1].split(" ")[0]
    assert (await call("bash", command=f"sed -n 12345p {path}")).text == "12345"
    assert "12345\t12345" in (await call("read", path=path, offset=12345, limit=1)).text


async def test_a_slow_command_goes_on_in_the_background(call: Call, workspace: Path) -> None:
    outcome = await call("bash", command="sleep 1.5; echo done > late.txt", timeout_s=1)
    assert "still running after 1 s" in outcome.text
    assert not outcome.is_error
    assert (await call("bash", command="until [ -s late.txt ]; do sleep 0.1; done; cat late.txt")).text.endswith("done")


async def test_output_is_shown_while_it_comes(sandbox: Sandbox) -> None:
    (tool,) = build_tools(sandbox, ["bash"], ScriptedModel(Script()))
    live: list[str] = []
    arguments = tool.arguments.model_validate({"command": r"printf 'caf\xc3'; sleep 0.3; printf '\xa9 \e[31mred\e[0m\n'"})
    outcome = await tool.run(arguments, live.append)
    assert "".join(live).strip() == "café red"
    assert outcome.text == "café red"


def test_control_sequences_are_removed() -> None:
    assert plain("\x1b]0;title\x07a\x1b[1;31mb\x1b[0m\r\n10%\r100%\n\x08c") == "ab\n100%\nc"


def test_head_and_tail_say_what_is_missing() -> None:
    text = head_and_tail("".join(f"{number}\n" for number in range(1000)), 200)
    assert text.startswith("0\n1\n")
    assert text.endswith("\n999\n")
    assert "characters (9" in text
    assert head_and_tail("short", 200) == "short"


def git_output(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(workspace: Path) -> Path:
    (workspace / "a.txt").write_text("one\n")
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=workspace, check=True)
    return workspace


async def test_git_looks_stages_and_commits(call: Call, repository: Path) -> None:
    (repository / "a.txt").write_text("two\n")
    assert (await call("git", command="status")).text == "## main\n M a.txt"
    assert "-one\n+two" in (await call("git", command="diff")).text
    assert (await call("git", command="diff", staged=True)).text == "No differences."
    assert (await call("git", command="add", paths=["a.txt"])).text == "Added a.txt."
    assert not (await call("git", command="commit", message="second\n\n-- with 'quotes'")).is_error
    assert "second" in (await call("git", command="log", max_count=1)).text
    assert "+two" in (await call("git", command="show", revision="HEAD")).text
    assert "1) two" in (await call("git", command="blame", paths=["a.txt"])).text
    assert not (await call("git", command="branch", name="topic")).is_error
    assert (await call("git", command="status")).text == "## topic"
    assert git_output(repository, "log", "-1", "--format=%s") == "second"


async def test_git_stashes_and_makes_another_tree(call: Call, repository: Path) -> None:
    assert (await call("git", command="stash")).text == "No stashes."
    (repository / "new.txt").write_text("kept\n")
    await call("git", command="stash", action="push", message="aside")
    assert not (repository / "new.txt").exists()
    assert "aside" in (await call("git", command="stash", action="list")).text
    await call("git", command="stash", action="pop")
    assert (repository / "new.txt").read_text() == "kept\n"
    added = await call("git", command="worktree", action="add", paths=["side-tree"], name="side")
    assert not added.is_error, added.text
    assert (repository / "side-tree" / "a.txt").read_text() == "one\n"
    (repository / "side-tree" / "b.txt").write_text("unsaved\n")
    assert (await call("git", command="worktree", action="remove", paths=["side-tree"])).is_error
    assert (repository / "side-tree" / "b.txt").exists()


async def test_git_says_what_is_missing(call: Call, workspace: Path) -> None:
    outcome = await call("git", command="status")
    assert outcome.is_error
    assert outcome.text.startswith("Error: not a git repository")
    assert "needs a message" in (await call("git", command="commit")).text


async def test_git_takes_no_options_for_revisions(call: Call) -> None:
    for word in ("--output=/tmp/x", "-p", "a b"):
        with pytest.raises(ValueError, match="revision"):
            await call("git", command="diff", revision=word)


async def test_finish_ends_the_turn(call: Call) -> None:
    outcome = await call("finish", summary="fixed")
    assert outcome.ends_turn
    assert outcome.text == "fixed"


def test_an_unknown_tool_name_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="no tool is named teleport"):
        build_tools(sandbox, ["read", "teleport"], ScriptedModel(Script()))
