"""The socket the server listens on. Nobody else's socket is ever taken away."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
from pathlib import Path

from kcode_backend.errors import BackendError


class CannotListen(BackendError):
    """The address cannot be used; the message says why."""


def listen_unix(path: Path) -> socket.socket:
    """A listening Unix socket with mode 0600. The socket of a dead process is replaced; CannotListen when one lives.

    A lock beside the socket is held for the life of the process, so two servers that start at once cannot both win.
    """
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise CannotListen(f"an engine already listens on {path}; stop it or use another --socket") from error
    if _alive(path):
        raise CannotListen(f"another program listens on {path}; use another --socket")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise CannotListen(f"cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def listen_tcp(host: str, port: int, *, keyed: bool) -> socket.socket:
    """A listening TCP socket; addresses other than loopback need a server that asks for a key. Raises CannotListen."""
    if not is_loopback(host) and not keyed:
        raise CannotListen(f"--host {host} can be reached by others; give --api-key KEY or use 127.0.0.1")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {_reason(error)}") from error
    listener.listen(128)
    return listener


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program listens there; use another --port"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"this machine has no such address ({error.strerror}); use another --host"
    return error.strerror or str(error)


def _alive(path: Path) -> bool:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(path))
    except OSError as error:
        if error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK):
            return False
        raise CannotListen(f"cannot use {path}: {error.strerror or error}") from error
    finally:
        probe.close()
    return True


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
