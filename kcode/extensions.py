"""What a user adds to a session from outside: the tools of tool servers (MCP)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kcode.mcp.servers import open_servers
from kcode.paths import Paths
from kcode.session import Equipment


async def extend(equipment: Equipment, paths: Paths, workspace: Path) -> Equipment:
    """The equipment with all that is configured. A profile that leads its model by the hand has no use for further tools."""
    if equipment.profile.guided:
        return equipment
    servers = await open_servers(paths, workspace, equipment.sandbox)
    return replace(
        equipment,
        tools=equipment.tools + servers.tools,
        specs=equipment.specs + servers.specs,
        notices=equipment.notices + servers.notices,
        servers=servers,
    )
