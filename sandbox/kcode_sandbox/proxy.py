"""The only way out of a sandbox with an allow-list: a proxy outside, reached through a socket in the sandbox's own folder.

Inside there is no network at all and no resolver, so what does not ask here reaches nothing. A request is allowed by its host's
name; the name is resolved here, and the address that was checked is the one that is dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import h11

from kcode_sandbox.hosts import HostRule, allows, host_name, is_public

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 30.0
DIAL_TIMEOUT_S = 30.0
PIECE_BYTES = 1 << 16
MAX_CONNECTIONS = 64
SOCKET_NAME = "proxy.sock"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolve = Callable[[str, int], Awaitable[list[str]]]
Dial = Callable[[str, int], Awaitable[Streams]]


class Refused(Exception):
    """The request is answered with `status` and the reason, and nothing is dialled."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Target:
    host: str
    port: int
    tunnel: bool
    """CONNECT: bytes pass as they are. Otherwise `first` goes out before them."""
    first: bytes = b""


@dataclass(frozen=True, slots=True)
class Denial:
    """`asked` is the host and port, `rule` why it was refused."""

    asked: str
    rule: str


@dataclass(slots=True)
class Record:
    """What was asked for, newest last."""

    allowed: list[str] = field(default_factory=list)
    denials: list[Denial] = field(default_factory=list)

    @property
    def refused(self) -> list[str]:
        return [denial.asked for denial in self.denials]


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order of preference. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Proxy:
    """Serves one sandbox. `resolve` and `dial` are the network; tests have their own."""

    def __init__(self, rules: Sequence[HostRule], resolve: Resolve = resolve, dial: Dial = asyncio.open_connection) -> None:
        self._rules = tuple(rules)
        self._resolve = resolve
        self._dial = dial
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.record = Record()

    async def start(self, path: Path) -> None:
        """Listen on the Unix socket `path`."""
        self._server = await asyncio.start_unix_server(self._accept, path)

    def allow(self, rules: Sequence[HostRule]) -> None:
        """In force from the next request on."""
        self._rules = tuple(rules)

    def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                raise Refused(503, f"more than {MAX_CONNECTIONS} connections at once")
            target, rest = await _read_request(reader)
            outside = await self._open(target)
            await _join((reader, writer), outside, target, rest)
        except Refused as refusal:
            await _answer(writer, refusal)
        except (OSError, asyncio.IncompleteReadError):
            log.debug("a connection through the proxy broke off", exc_info=True)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _open(self, target: Target) -> Streams:
        """Connected to the target. Raises Refused."""
        asked = f"{target.host}:{target.port}"
        if not allows(self._rules, target.host, target.port):
            allowed = ", ".join(map(str, self._rules)) or "nothing"
            self.record.denials.append(Denial(asked, f"only {allowed} can be reached in this sandbox"))
            raise Refused(403, f"{asked} is not on this sandbox's list of hosts ({allowed}); ask the user to allow it")
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                addresses = await self._resolve(target.host, target.port)
                private = [address for address in addresses if not is_public(address)]
                if private or not addresses:
                    self.record.denials.append(Denial(asked, "only addresses of the internet can be reached in this sandbox"))
                    raise Refused(403, f"{asked} is {private or 'nowhere'}, no address of the internet")
                streams = await self._dial(addresses[0], target.port)
        except TimeoutError as error:
            raise Refused(504, f"{asked} did not answer within {DIAL_TIMEOUT_S:.0f} s") from error
        except OSError as error:
            raise Refused(502, f"{asked} cannot be reached: {error.strerror or error}") from error
        self.record.allowed.append(asked)
        return streams


@dataclass(frozen=True, slots=True)
class WayOut:
    """A listening proxy and the private folder with its socket."""

    proxy: Proxy
    folder: tempfile.TemporaryDirectory[str]

    @property
    def socket(self) -> Path:
        return Path(self.folder.name) / SOCKET_NAME

    def close(self) -> None:
        self.proxy.close()
        self.folder.cleanup()


async def open_way_out(proxy: Proxy) -> WayOut:
    folder = tempfile.TemporaryDirectory(prefix="kcode-proxy-")
    try:
        await proxy.start(Path(folder.name) / SOCKET_NAME)
    except BaseException:
        folder.cleanup()
        raise
    return WayOut(proxy, folder)


async def _read_request(reader: asyncio.StreamReader) -> tuple[Target, bytes]:
    """The target of a request's head and what came after the head. Raises Refused."""
    parser = h11.Connection(h11.SERVER)
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            while (event := parser.next_event()) is h11.NEED_DATA:
                parser.receive_data(await reader.read(PIECE_BYTES))
    except TimeoutError as error:
        raise Refused(408, f"no request came within {HEAD_TIMEOUT_S:.0f} s") from error
    except h11.RemoteProtocolError as error:
        raise Refused(400, f"this is no HTTP request: {error}") from error
    if not isinstance(event, h11.Request):
        raise Refused(400, "the connection ended before a request came")
    try:
        return _target_of(event), parser.trailing_data[0]
    except ValueError as error:
        raise Refused(400, str(error)) from error


def _target_of(request: h11.Request) -> Target:
    """ValueError for a target that is not plainly a host and a port."""
    text = request.target.decode("ascii")
    if request.method == b"CONNECT":
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdigit():
            raise ValueError(f"CONNECT {text!r} names no port")
        return Target(host_name(host), _port(int(port)), tunnel=True)
    parts = urlsplit(text)
    if parts.scheme != "http" or parts.hostname is None or parts.username is not None:
        raise ValueError(f"{text!r} is no http:// address")
    host, port = host_name(parts.hostname), _port(parts.port or 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # One request for each connection, and it is the checked host that is named.
    kept = [(name, value) for name, value in request.headers if name not in (b"host", b"connection", b"proxy-connection")]
    kept = [pair for pair in kept if pair[0] != b"proxy-authorization"]
    authority = host if port == 80 else f"{host}:{port}"
    lines = [b"%s %s HTTP/1.1" % (request.method, path.encode()), b"host: " + authority.encode(), b"connection: close"]
    lines += [b"%s: %s" % pair for pair in kept]
    return Target(host, port, tunnel=False, first=b"\r\n".join(lines) + b"\r\n\r\n")


def _port(number: int) -> int:
    if not 0 < number < 65536:
        raise ValueError(f"{number} is no port")
    return number


async def _join(inside: Streams, outside: Streams, target: Target, rest: bytes) -> None:
    """Carry bytes both ways until both ends have said their last."""
    if target.tunnel:
        inside[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    outside[1].write(target.first + rest)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_carry(inside[0], outside[1]))
            group.create_task(_carry(outside[0], inside[1]))
    finally:
        outside[1].close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(PIECE_BYTES):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def _answer(writer: asyncio.StreamWriter, refusal: Refused) -> None:
    reason = str(refusal).encode("ascii", "replace")
    head = b"HTTP/1.1 %d %s\r\n" % (refusal.status, reason.replace(b"\r", b" ").replace(b"\n", b" "))
    body = b"kcode's sandbox: " + reason + b"\n"
    with contextlib.suppress(OSError):
        writer.write(head + b"content-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
