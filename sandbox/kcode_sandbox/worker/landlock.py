"""Fences in the kernel: what may be read and written is named by path, for a process and all it starts, for good.

Behind mounts `fence` names once more what may be written: should a mount be missing or too wide, a write still fails; and signals
and abstract sockets, which no mount holds, stop at the fence too. Without mounts `ruleset` is the wall itself. See landlock(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Mapping, Sequence

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG = 1
PATH_BENEATH = 1
EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
WRITE_FILE, TRUNCATE, IOCTL_DEVICE = 1 << 1, 1 << 14, 1 << 15
LOOK = EXECUTE | READ_FILE | READ_DIR
# Rights by the version of the interface that brought them.
RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: TRUNCATE, 5: IOCTL_DEVICE}
OF_FILES = EXECUTE | READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEVICE
WALLS_VERSION = 3
"""Below it a file that may not be written could be cut off; no wall can be made of that (Linux 6.2)."""
SCOPES_VERSION = 6
SCOPES = 1 << 0 | 1 << 1
"""Abstract sockets, signals."""
TCP_VERSION = 4
TCP = 1 << 0 | 1 << 1
"""To bind, to connect."""
NEW_DEVICES = 1 << 6 | 1 << 11
OPEN_HOW = struct.Struct("=QQQ")
OPENAT2 = 437
NO_SYMLINKS = 0x04
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Of the kernel's interface; 0 when it has none or it is switched off."""
    return max(0, _libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG)))


def fence(writable: Sequence[str]) -> int:
    """From now on this process and all it starts may write below `writable` only; the interface's version, 0 without one.

    Raises OSError when the kernel has it and it fails: half a fence is none.
    """
    abi = version()
    if not abi:
        return 0
    ruleset_fd = _create(abi, tcp=False)
    try:
        _allow(ruleset_fd, _opened("/"), LOOK)
        for path in writable:
            _allow(ruleset_fd, _opened(path), _handled(abi))
        restrict(ruleset_fd)
    finally:
        os.close(ruleset_fd)
    return abi


def ruleset(places: Mapping[str, Sequence[str]], *, tcp: bool) -> int:
    """A descriptor for `restrict`, behind which only `places` can be opened: "read", "list" (names only), "write", "devices".

    No link is followed to them. What may be read is left out where it is absent or a link, the rest must be there. With `tcp`
    refused, where the kernel can, no TCP port can be bound or reached.
    """
    abi = version()
    handled = _handled(abi)
    rights = {
        "read": LOOK,
        "list": READ_DIR,
        "write": handled & ~NEW_DEVICES,
        "devices": LOOK | WRITE_FILE | IOCTL_DEVICE & handled,
    }
    ruleset_fd = _create(abi, tcp=not tcp)
    try:
        for kind, paths in places.items():
            for path in paths:
                try:
                    fd = _opened(path)
                except OSError:
                    if kind == "write":
                        raise
                    continue
                _allow(ruleset_fd, fd, rights[kind])
    except BaseException:
        os.close(ruleset_fd)
        raise
    return ruleset_fd


def allow_device(ruleset_fd: int, path: str) -> None:
    """For those who are restricted by it from now on."""
    _allow(ruleset_fd, _opened(path), LOOK | WRITE_FILE | IOCTL_DEVICE & _handled(version()))


def restrict(ruleset_fd: int) -> None:
    """From now on, in addition to every fence before it. The process must have renounced new privileges."""
    _call(RESTRICT_SELF, ctypes.c_int(ruleset_fd), ctypes.c_uint32(0))


def _handled(abi: int) -> int:
    handled = 0
    for since, rights in RIGHTS.items():
        handled |= rights if abi >= since else 0
    return handled


def _create(abi: int, *, tcp: bool) -> int:
    """With `tcp` it handles that too, where the kernel can: then all of it is refused."""
    attributes = struct.pack("=Q", _handled(abi))
    if abi >= TCP_VERSION:
        attributes += struct.pack("=Q", TCP if tcp else 0)
    if abi >= SCOPES_VERSION:
        attributes += struct.pack("=Q", SCOPES)
    return _call(CREATE_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))


def _opened(path: str) -> int:
    how = OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, NO_SYMLINKS)
    return _call(OPENAT2, ctypes.c_int(AT_FDCWD), ctypes.c_char_p(os.fsencode(path)), ctypes.c_char_p(how), ctypes.c_size_t(24))


def _allow(ruleset_fd: int, fd: int, rights: int) -> None:
    """Closes `fd`."""
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= OF_FILES
        rule = struct.pack("=Qi", rights, fd)
        _call(ADD_RULE, ctypes.c_int(ruleset_fd), ctypes.c_int(PATH_BENEATH), ctypes.c_char_p(rule), ctypes.c_uint32(0))
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock ({number}): {errno.errorcode.get(code, code)}")
    return int(result)
