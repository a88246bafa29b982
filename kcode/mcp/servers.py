"""The tool servers of a session: asked for their tools once, at its start, since they stand at the prompt's head."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import re
from pathlib import Path
from typing import cast

from kcode.events import Notice
from kcode.mcp.config import find_servers, ignored
from kcode.mcp.connection import Connection, ServerFailed
from kcode.mcp.tool import McpTool
from kcode.model import ToolSpec
from kcode.paths import Paths
from kcode.tools.outputs import Outputs
from kcode.tools.toolbox import AnyTool
from kcode_sandbox.sandbox import Sandbox

MAX_TOOLS = 64
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
log = logging.getLogger(__name__)


class ToolServers:
    """`tools`, `specs` and `notices` are fixed once `open_servers` returned it. Whoever opened it closes it."""

    def __init__(self, connections: tuple[Connection, ...], tools: tuple[McpTool, ...], notices: tuple[Notice, ...]) -> None:
        self._connections = connections
        self.tools: tuple[AnyTool, ...] = tuple(cast("AnyTool", tool) for tool in tools)
        self.specs: tuple[ToolSpec, ...] = tuple(tool.spec for tool in tools)
        self.notices = notices

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections))


async def open_servers(paths: Paths, workspace: Path, sandbox: Sandbox) -> ToolServers:
    """Ask all configured servers at once. One that fails is a notice. Raises ConfigError for a wrong configuration."""
    configs = find_servers(paths, workspace)
    told = ignored(paths, workspace)
    if configs and importlib.util.find_spec("mcp") is None:
        text = f"{len(configs)} tool servers are not used: the package mcp is missing; pip install 'kcode-agent[mcp]'"
        return ToolServers((), (), (*told, Notice("warning", text)))
    connections = tuple(Connection(name, config, workspace, paths.logs) for name, config in sorted(configs.items()))
    outputs = Outputs(sandbox)
    tools: list[McpTool] = []
    notices = [*told]
    try:
        answers = await asyncio.gather(*(connection.tools() for connection in connections), return_exceptions=True)
    except BaseException:
        await asyncio.gather(*(connection.close() for connection in connections))
        raise
    for connection, answer in zip(connections, answers, strict=True):
        if isinstance(answer, ServerFailed):
            notices.append(Notice("warning", f"{answer}; going on without its tools"))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            named = [remote for remote in answer if TOOL_NAME.fullmatch(remote.name)]
            taken = named[: MAX_TOOLS - len(tools)]
            tools += [McpTool(connection, remote, outputs) for remote in taken]
            if len(taken) < len(answer):
                text = f"{len(taken)} of its {len(answer)} tools are used (at most {MAX_TOOLS} in all)"
                notices.append(Notice("warning", f"tool server {connection.name}: {text}"))
    return ToolServers(connections, tuple(tools), tuple(notices))
