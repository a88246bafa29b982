"""A command of the user's own: it runs in the session's shell as any call, and the model reads of it with the next message."""

from __future__ import annotations

import asyncio
import time

from pydantic import BaseModel

from kcode.approval import Before, Verdict, nothing_before
from kcode.context import Context
from kcode.events import OWN_COMMAND
from kcode.messages import ToolCall
from kcode.model import ChatModel
from kcode.steps import Driver, Steps
from kcode.tools.tool import Access, Tool
from kcode.tools.toolbox import build_tools
from kcode.turn import Ending
from kcode_prompts.prompt import load
from kcode_sandbox.sandbox import Sandbox

SHELL = "bash"
STOPPED = "[the user stopped it]"


class Unasked:
    """Who typed the command has allowed it; what it may reach is the sandbox's to say, as ever."""

    async def decide(self, call: ToolCall, access: Access, summary: str, before: Before = nothing_before) -> Verdict:
        return Verdict(True)


def own_command(command: str, context: Context) -> Driver:
    """The driver of a turn that is this command. It asks no model, so it needs none that is ready."""

    async def drive(steps: Steps, _: str) -> Ending:
        started = time.monotonic()
        try:
            called = await steps.probe(SHELL, {"command": command})
        except asyncio.CancelledError:
            steps.say(load("own_command", command=command, output=STOPPED))
            raise
        context.add_own(called.call, called.result, called.display, time.monotonic() - started)
        steps.say(load("own_command", command=command, output=called.result.text))
        return Ending("finished", OWN_COMMAND)

    return drive


def with_shell(tools: tuple[Tool[BaseModel], ...], sandbox: Sandbox, model: ChatModel) -> tuple[Tool[BaseModel], ...]:
    """`tools` and the shell, which the user has whatever the model is offered."""
    if any(tool.name == SHELL for tool in tools):
        return tools
    return (*tools, *build_tools(sandbox, (SHELL,), model))
