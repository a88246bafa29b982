"""What the walls look like from inside. Facts only: the client decides whether they suffice."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Iterator

from kcode_sandbox.protocol import Head, integer_of, text_of, texts_of

CLONE_NEWUSER = 0x10000000
CONNECT_TIMEOUT_S = 0.5


def look_around(wanted: Head) -> Head:
    """`wanted` names the canaries; an empty one asks for nothing, as without walls there is nothing to see."""
    if not wanted:
        return {}
    status = _status_lines()
    workspace = os.getcwd()
    return {
        "cap_eff": status.get("CapEff", ""),
        "cap_bnd": status.get("CapBnd", ""),
        "no_new_privs": status.get("NoNewPrivs", ""),
        "seccomp": status.get("Seccomp", ""),
        "canary_readable": _opens(text_of(wanted, "canary"), os.O_RDONLY),
        "canary_writable": _opens(text_of(wanted, "canary"), os.O_WRONLY),
        "port_reachable": _reachable(integer_of(wanted, "port")),
        "namespace_possible": _namespace_possible(),
        "environment_names": sorted(_visible_environment()),
        "workspace_writable": os.access(workspace, os.W_OK),
        "workspace_readable": os.access(workspace, os.R_OK | os.X_OK),
        "writable_protected": [path for path in texts_of(wanted, "protected") if os.access(path, os.W_OK)],
        "core_pattern_writable": _opens("/proc/sys/kernel/core_pattern", os.O_WRONLY),
    }


def _status_lines() -> dict[str, str]:
    with open("/proc/self/status") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def _opens(path: str, flags: int) -> bool:
    """Tried, since access(2) asks the file's mode and no fence."""
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _reachable(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def _namespace_possible() -> bool:
    """Whether a process inside can make a user namespace, tried in a child because it would change us."""
    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.fork()
    if pid == 0:
        signal.alarm(2)
        os._exit(0 if libc.unshare(CLONE_NEWUSER) == 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _visible_environment() -> Iterator[str]:
    """Names of all variables in any process that can be looked into, our own first process included."""
    names: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                names |= {entry.partition(b"=")[0].decode(errors="replace") for entry in file.read().split(b"\0") if entry}
        except OSError:
            continue
    yield from names
