"""A tool server made with the SDK: over stdio, or over HTTP on the port named."""

from __future__ import annotations

import os
import sys

from mcp.server.mcpserver import Image, MCPServer

server = MCPServer("shop")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def environment() -> str:
    """The names of the server's environment."""
    return " ".join(sorted(os.environ)) + f" TOKEN={os.environ.get('TOKEN')}"


@server.tool()
def many(lines: int) -> str:
    """So many lines."""
    return "\n".join(f"line {number}" for number in range(lines))


@server.tool()
def picture() -> Image:
    """A picture."""
    return Image(data=b"\x89PNG", format="png")


@server.tool()
def leave() -> str:
    """End the server in the middle of a call."""
    os._exit(3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
