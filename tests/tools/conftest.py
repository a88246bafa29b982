"""A started sandbox over an empty workspace, with the real worker inside, and the tools over it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kcode.models.scripted import Script, ScriptedModel
from kcode.tools.tool import Outcome
from kcode.tools.toolbox import build_tools
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.environment import clean_environment
from kcode_sandbox.policy import Policy
from kcode_sandbox.sandbox import Sandbox

NAMES = (
    "read",
    "grep",
    "glob",
    "repo_map",
    "str_replace",
    "create",
    "insert",
    "rewrite_function",
    "bash",
    "bash_input",
    "todo",
    "run_tests",
    "git",
    "view_image",
    "finish",
)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path.resolve() / "project"
    folder.mkdir()
    return folder


@pytest.fixture
async def sandbox(workspace: Path) -> AsyncIterator[Sandbox]:
    opened = open_sandbox(Policy(workspace, environment=tuple(clean_environment(os.environ).items())))
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def call(sandbox: Sandbox) -> Callable[..., Awaitable[Outcome]]:
    """`await call("read", path="a.py")` runs a tool as the loop does: arguments parsed, live output thrown away."""
    tools = {tool.name: tool for tool in build_tools(sandbox, NAMES, ScriptedModel(Script(sees=True)))}

    async def run(name: str, /, **arguments: object) -> Outcome:
        tool = tools[name]
        return await tool.run(tool.arguments.model_validate(arguments), lambda text: None)

    return run
