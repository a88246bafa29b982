"""A port of the sandbox's own loopback, carried to the proxy's socket: programs know proxies by port, not by socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

from kcode_sandbox.worker.processes import PR_SET_PDEATHSIG, close_all_but, prctl

PIECE_BYTES = 1 << 16


def start_relay(path: str) -> int:
    """Fork the process that carries; returns the port once it listens. It ends with this process."""
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            close_all_but({2, writer})
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:
                asyncio.run(_serve(path, writer))
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as answer:
        port = answer.read()
    if not port:
        raise OSError(f"the relay to {path} did not start")
    return int(port)


async def _serve(path: str, ready_fd: int) -> None:
    async def carry_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner, outer = await asyncio.open_unix_connection(path)
        except OSError as error:
            print(f"relay: {error}", file=sys.stderr)
            writer.close()
            return
        try:
            await asyncio.gather(_carry(reader, outer), _carry(inner, writer))
        finally:
            writer.close()
            outer.close()

    server = await asyncio.start_server(carry_one, "127.0.0.1", 0)
    os.write(ready_fd, str(server.sockets[0].getsockname()[1]).encode())
    os.close(ready_fd)
    await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
