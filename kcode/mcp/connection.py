"""One connection to a tool server, kept by a task of its own: the SDK's scopes must be left by the task that entered them.

A server that is a program runs outside the sandbox, as the user's own choice, with an environment of HOME, LOGNAME, PATH, SHELL,
TERM, USER and what its configuration names. It ends with the session.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kcode.errors import ConfigError
from kcode.mcp.config import ServerConfig, expanded
from kcode.paths import make_private

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult
    from mcp.types import Tool as RemoteTool

MAX_PAGES = 50
CLOSE_S = 10
log = logging.getLogger(__name__)


class ServerFailed(Exception):
    """The server could not be reached or broke off; one line says why. `is_gone`: the connection is of no more use."""

    def __init__(self, text: str, *, is_gone: bool = True) -> None:
        super().__init__(text)
        self.is_gone = is_gone


class Connection:
    """Opened at first use and again after it broke; a call that was under way then is not repeated, since it may have acted."""

    def __init__(self, name: str, config: ServerConfig, workspace: Path, logs: Path) -> None:
        self.name = name
        self.config = config
        self._workspace = workspace
        self._log = logs / f"mcp-{name}.log"
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._client: Client | None = None

    async def tools(self) -> list[RemoteTool]:
        """Raises ServerFailed."""
        client = await self._open()
        found: list[RemoteTool] = []
        cursor: str | None = None
        try:
            async with asyncio.timeout(self.config.start_timeout_s):
                for _ in range(MAX_PAGES):
                    page = await client.list_tools(cursor=cursor)
                    found += page.tools
                    cursor = page.next_cursor
                    if not cursor:
                        return found
        except failures() as error:
            log.debug("listing the tools of %s", self.name, exc_info=True)
            raise ServerFailed(f"tool server {self.name}: its tools cannot be listed: {said(error)}") from error
        raise ServerFailed(f"tool server {self.name}: it lists its tools without end")

    async def call(self, tool: str, arguments: dict[str, object]) -> CallToolResult:
        """Raises ServerFailed; the next call connects anew."""
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        client = await self._open()
        try:
            async with asyncio.timeout(self.config.timeout_s):
                return await client.call_tool(tool, arguments)
        except TimeoutError as error:
            raise ServerFailed(f"no answer within {self.config.timeout_s:g} s", is_gone=False) from error
        except MCPError as error:
            # An answer that says no leaves the connection whole; a broken one reports itself in the same class.
            if error.code == CONNECTION_CLOSED and error.message == "Connection closed":
                await self.close()
            raise ServerFailed(said(error)) from error
        except failures() as error:
            log.debug("calling %s of %s", tool, self.name, exc_info=True)
            await self.close()
            raise ServerFailed(f"the connection broke: {said(error)}; the next call connects anew") from error

    async def close(self) -> None:
        """End the server's process or the connection to it, within 20 s whatever the server does. Idempotent."""
        task, client, self._task, self._client = self._task, self._client, None, None
        if task is None:
            return
        self._stop.set()
        if client is None:
            # Still connecting: it does not look at `_stop`.
            task.cancel()
        await asyncio.wait([task], timeout=CLOSE_S)
        if not task.done():
            # The SDK kills a program after 5 s, so this is an address that does not answer.
            task.cancel()
            await asyncio.wait([task], timeout=CLOSE_S)

    async def _open(self) -> Client:
        async with self._lock:
            if self._client is not None and self._task is not None and not self._task.done():
                return self._client
            await self.close()
            self._stop = asyncio.Event()
            ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._keep(ready, self._stop))
            try:
                async with asyncio.timeout(self.config.start_timeout_s):
                    self._client = await ready
            except TimeoutError as error:
                self._task.cancel()
                await asyncio.wait([self._task], timeout=CLOSE_S)
                raise ServerFailed(
                    f"tool server {self.name}: it did not answer within {self.config.start_timeout_s:g} s (start_timeout_s)"
                ) from error
            return self._client

    async def _keep(self, ready: asyncio.Future[Client], stop: asyncio.Event) -> None:
        reason = "it was closed"
        try:
            async with AsyncExitStack() as stack:
                client = await self._connect(stack)
                if not ready.done():
                    ready.set_result(client)
                await stop.wait()
        except failures() as error:
            log.debug("the connection to %s", self.name, exc_info=True)
            reason = said(error)
        finally:
            if not ready.done():
                where = f"; its output is in {self._log}" if self.config.command else ""
                ready.set_exception(ServerFailed(f"tool server {self.name}: {reason}{where}"))

    async def _connect(self, stack: AsyncExitStack) -> Client:
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client
        from mcp.client.streamable_http import streamable_http_client
        from mcp.shared._httpx_utils import create_mcp_http_client

        config = self.config
        if config.url:
            http = await stack.enter_async_context(create_mcp_http_client(headers=expanded(config.headers)))
            transport = streamable_http_client(config.url, http_client=http)
        else:
            with suppress(OSError):
                make_private(self._log.parent)
            errors = stack.enter_context(self._log.open("a"))
            program = StdioServerParameters(
                command=config.command, args=list(config.args), env=expanded(config.env), cwd=self._workspace
            )
            transport = stdio_client(program, errlog=errors)
        return await stack.enter_async_context(Client(transport, cache=None))


def failures() -> tuple[type[Exception], ...]:
    """What the SDK and what it stands on raise for a server that is away, broken or talks nonsense."""
    import anyio
    import httpx2
    from mcp import MCPError

    closed = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)
    return (
        MCPError,
        ConfigError,
        OSError,
        RuntimeError,
        ValueError,
        ExceptionGroup,
        httpx2.HTTPError,
        httpx2.InvalidURL,
        *closed,
    )


def said(error: BaseException) -> str:
    """The innermost reason in one line: the SDK wraps errors in groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ConfigError | FileNotFoundError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300].removesuffix(": ")
