"""The walls this process raises around itself where no namespaces can be made: no privileges, Landlock, a system call filter.

Two fences, one in the other: commands stand behind an inner one, from which neither this process nor another terminal can be
reached, signalled or traced.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

from kcode_sandbox.protocol import Head, flag_of, integer_of, object_of, text_of, texts_of
from kcode_sandbox.worker import landlock
from kcode_sandbox.worker.processes import PR_SET_PDEATHSIG, fence_commands, prctl

PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522
INSTRUCTION_BYTES = 8
OWN_PLACES = {"devices": ("/dev/pts", "/dev/ptmx")}
"""For the shells' terminals, which this process opens."""

_libc = ctypes.CDLL(None, use_errno=True)


def raise_walls(wanted: Head) -> None:
    """For good. Raises OSError when one of them cannot stand; nothing must be run then."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != integer_of(wanted, "parent"):
        raise OSError("whoever started the sandbox is gone")
    _drop_capabilities()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    given = object_of(wanted, "places")
    places = {kind: texts_of(given, kind) for kind in ("read", "list", "write", "devices")}
    own = {**places, "devices": [*places["devices"], *OWN_PLACES["devices"]]}
    tcp = flag_of(wanted, "tcp")
    inner_fd, outer_fd = landlock.ruleset(places, tcp=tcp), landlock.ruleset(own, tcp=tcp)
    landlock.restrict(outer_fd)
    os.close(outer_fd)
    fence_commands(inner_fd)
    apply_filter(bytes.fromhex(text_of(wanted, "filter")))


def _drop_capabilities() -> None:
    number = 0
    # An ordinary user may not empty the bounding set; without new privileges it gives nothing to anybody.
    while _libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
        number += 1
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION_3, 0))
    if _libc.capset(header, ctypes.create_string_buffer(24)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def apply_filter(program: bytes) -> None:
    """For this process and all it starts, for good. Raises OSError."""
    instructions = ctypes.create_string_buffer(program, len(program))
    described = _Program(len(program) // INSTRUCTION_BYTES, ctypes.addressof(instructions))
    if _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(described), 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"the system call filter: {os.strerror(code)}")
