"""What is asked about whatever the mode."""

from __future__ import annotations

import json

import pytest

from kcode.approval import Approval, Question, Reply, is_destructive_git
from kcode.messages import ToolCall


def bash(command: str) -> ToolCall:
    return ToolCall("1", "bash", json.dumps({"command": command}))


@pytest.mark.parametrize(
    "command",
    [
        "git reset --hard",
        "git reset --hard HEAD~1",
        "cd sub && git -C . reset --hard",
        "git clean -fd",
        "git clean -xdf .",
        "git checkout -- .",
        "git checkout .",
        "git checkout -f main",
        "git checkout HEAD -- src/a.py",
        "git restore src/a.py",
        "git restore .",
        "git switch --discard-changes main",
        "git stash drop",
        "git stash clear",
        "git rm -f a.py",
        "echo $(git reset --hard)",
        "git --no-pager -c a.b=c reset --hard",
    ],
)
def test_git_that_destroys_uncommitted_work_is_recognised(command: str) -> None:
    assert is_destructive_git(bash(command))


@pytest.mark.parametrize(
    "command",
    [
        "git status",
        "git reset HEAD a.py",
        "git checkout -b new",
        "git checkout main",
        "git log --oneline",
        "git stash",
        "git restore --staged a.py",
        "git clean -n",
        "git rm --cached a.py",
        "echo reset --hard",
        "grep -rn 'digit' .",
    ],
)
def test_other_git_is_not(command: str) -> None:
    assert not is_destructive_git(bash(command))


def test_the_git_tool_asks_before_work_leaves_the_tree() -> None:
    for action, asks in {"push": True, "pop": True, "drop": True, "list": False, "apply": False}.items():
        call = ToolCall("1", "git", json.dumps({"command": "stash", "action": action}))
        assert is_destructive_git(call) is asks


def test_text_that_is_no_command_is_not_read() -> None:
    message = ToolCall("1", "git", json.dumps({"command": "commit", "message": "undo the git reset --hard"}))
    assert not is_destructive_git(message)
    assert not is_destructive_git(ToolCall("1", "create", json.dumps({"path": "a.sh", "content": "git reset --hard"})))
    assert not is_destructive_git(ToolCall("1", "bash", "{broken"))


@pytest.mark.parametrize("is_dirty", [True, False])
async def test_destructive_git_asks_in_auto_mode_when_there_is_work_to_lose(is_dirty: bool) -> None:
    asked: list[str] = []

    async def answer(question: Question) -> Reply:
        asked.append(question.reason)
        return Reply("allow-always")

    async def dirty() -> bool:
        return is_dirty

    approval = Approval("auto", answer, dirty)
    for _ in range(2):
        verdict = await approval.decide(bash("git reset --hard"), "execute", "$ git reset --hard")
        assert verdict.allowed
    assert len(asked) == (2 if is_dirty else 0), '"always" must not cover what destroys work'


async def test_without_a_person_a_question_is_a_denial() -> None:
    async def dirty() -> bool:
        return True

    verdict = await Approval("auto", None, dirty).decide(bash("git clean -fdx"), "execute", "$ git clean -fdx")
    assert (verdict.allowed, "nobody is there" in verdict.reason) == (False, True)
