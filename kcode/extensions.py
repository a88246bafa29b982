"""What a user and a repository add to a session: instructions (AGENTS.md) and the tools of tool servers (MCP)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kcode.instructions import NestedInstructions, instructed, opening_instructions, with_nested
from kcode.mcp.servers import ToolServers, open_servers
from kcode.messages import Message
from kcode.paths import Paths
from kcode.session import Equipment


async def extend(
    equipment: Equipment,
    paths: Paths,
    workspace: Path,
    messages: Callable[[], Sequence[Message]],
    shared: ToolServers | None = None,
) -> Equipment:
    """The equipment with all that is configured; `messages` gives the conversation so far.

    `shared` are the running tool servers of another session, which closes them; else they are opened.

    A profile that leads its model by the hand has no use for further tools, and its model none for further texts.
    """
    if equipment.profile.guided:
        return equipment
    text, notices = await opening_instructions(equipment.sandbox, paths, workspace)
    nested = NestedInstructions(equipment.sandbox, messages)
    equipment = replace(
        equipment,
        driver=instructed(equipment.driver, text) if text else equipment.driver,
        tools=with_nested(equipment.tools, nested),
        notices=equipment.notices + notices,
    )
    servers = await open_servers(paths, workspace, equipment.sandbox) if shared is None else shared
    return replace(
        equipment,
        tools=equipment.tools + servers.tools,
        specs=equipment.specs + servers.specs,
        notices=equipment.notices + servers.notices,
        servers=servers if shared is None else None,
    )
