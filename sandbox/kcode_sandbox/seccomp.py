"""The system call filter, as a classic BPF program for `bwrap --seccomp`.

A deny-list: what opens kernel surface that builds and tests do not need. Calls of a foreign architecture kill the
process, so that the numbers below mean what they say.
"""

from __future__ import annotations

import errno
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kcode_sandbox.errors import SandboxUnavailableError

INSTRUCTION = struct.Struct("=HBBI")
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets in struct seccomp_data; arguments are 64 bits, of which the low half comes first on both machines.
NUMBER, ARCHITECTURE, ARGUMENT_0, ARGUMENT_1 = 0, 4, 16, 24
NEW_NAMESPACES = 0x7E020000
SOCKET_TYPE, DATAGRAM = 0xF, 2
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
UNIX, INET, INET6, NETLINK = 1, 2, 10, 16
FAMILIES = (UNIX, INET, INET6, NETLINK)
X32_BIT = 0x40000000

# Numbers above 423 are the same everywhere. "Not there" lets programs fall back to what they used before:
# io_uring, the new mount interface, clone3 (whose flags a filter cannot see).
ABSENT = (*range(425, 434), 435, 442, 467)
REFUSED_EVERYWHERE = (443, 450)  # quotactl_fd, set_mempolicy_home_node
SHARED_EVERYWHERE = (463, 466)  # setxattrat, removexattrat


@dataclass(frozen=True, slots=True)
class Machine:
    audit: int
    clone: int
    ioctl: int
    socket: int
    socketpair: int
    of_others: tuple[tuple[int, int], ...]
    """Calls on a process, by the offset of the argument that names it: 0 is the caller itself."""
    has_x32: bool
    refused: tuple[int, ...]
    shared: tuple[int, ...]
    """What is the whole host's where there are no namespaces: queues of System V and POSIX, attributes and owners of files."""


# In both lists: syslog acct quotactl add_key request_key keyctl move_pages mbind get_mempolicy set_mempolicy
# migrate_pages / unshare setns mount umount2 pivot_root chroot userfaultfd bpf perf_event_open kexec_load
# kexec_file_load / init_module finit_module delete_module open_by_handle_at fanotify_init fanotify_mark clock_settime
# clock_adjtime settimeofday / swapon swapoff reboot sethostname setdomainname vhangup lookup_dcookie nfsservctl.
# x86_64 also: uselib modify_ldt iopl ioperm create_module.
# Shared: shmget shmat shmctl shmdt / semget semop semctl semtimedop / msgget msgsnd msgrcv msgctl mq_open mq_unlink /
# setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr / fchownat, on x86_64 also chown lchown.
MACHINES = {
    "x86_64": Machine(
        audit=0xC000003E,
        clone=56,
        ioctl=16,
        socket=41,
        socketpair=53,
        of_others=((302, ARGUMENT_0), (141, ARGUMENT_1)),
        has_x32=True,
        refused=(
            *(103, 163, 179, 248, 249, 250, 279, 237, 239, 238, 256),
            *(272, 308, 165, 166, 155, 161, 323, 321, 298, 246, 320),
            *(175, 313, 176, 304, 300, 301, 227, 305, 164),
            *(167, 168, 169, 170, 171, 153, 212, 180),
            *(134, 154, 172, 173, 174),
        ),
        shared=(
            *(29, 30, 31, 67, 64, 65, 66, 220, 68, 69, 70, 71, 240, 241),
            *(188, 189, 190, 197, 198, 199, 260, 92, 94),
        ),
    ),
    "aarch64": Machine(
        audit=0xC00000B7,
        clone=220,
        ioctl=29,
        socket=198,
        socketpair=199,
        of_others=((261, ARGUMENT_0), (140, ARGUMENT_1)),
        has_x32=False,
        refused=(
            *(116, 89, 60, 217, 218, 219, 239, 235, 236, 237, 238),
            *(97, 268, 40, 39, 41, 51, 282, 280, 241, 104, 294),
            *(105, 273, 106, 265, 262, 263, 112, 266, 170),
            *(224, 225, 142, 161, 162, 58, 18, 42),
        ),
        shared=(
            *(194, 196, 195, 197, 190, 193, 191, 192, 186, 189, 188, 187, 180, 181),
            *(5, 6, 7, 14, 15, 16, 54),
        ),
    ),
}


def _op(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return INSTRUCTION.pack(code, if_true, if_false, operand)


def _fail_when_equal(value: int, error: int) -> bytes:
    return _op(JUMP_EQUAL, value, 0, 1) + _op(RETURN, FAIL | error)


def filter_program(machine: Machine, families: Sequence[int] = FAMILIES, refused: Sequence[int] = ()) -> bytes:
    """Sockets of `families` only, and none of the calls `refused` beyond those that never are."""
    program = [_op(LOAD, ARCHITECTURE), _op(JUMP_EQUAL, machine.audit, 1, 0), _op(RETURN, KILL), _op(LOAD, NUMBER)]
    if machine.has_x32:
        program += [_op(JUMP_AT_LEAST, X32_BIT, 0, 1), _op(RETURN, FAIL | errno.ENOSYS)]
    program += [_fail_when_equal(number, errno.ENOSYS) for number in ABSENT]
    program += [_fail_when_equal(number, errno.EPERM) for number in (*machine.refused, *REFUSED_EVERYWHERE, *refused)]
    clone = _op(LOAD, ARGUMENT_0) + _op(JUMP_ANY_BIT, NEW_NAMESPACES, 0, 1) + _op(RETURN, FAIL | errno.EPERM)
    # The kernel looks at 32 bits of the request, so must we: a set high half would slip past a 64-bit comparison.
    ioctl = _op(LOAD, ARGUMENT_1) + _fail_when_equal(TIOCSTI, errno.EPERM) + _fail_when_equal(TIOCLINUX, errno.EPERM)
    # What is known but not among `families` is there and forbidden, which programs say more plainly.
    hidden = b"".join(_fail_when_equal(family, errno.EACCES) for family in FAMILIES if family not in families)
    after = len(hidden) // INSTRUCTION.size
    known = b"".join(_op(JUMP_EQUAL, family, len(families) - place + after, 0) for place, family in enumerate(families))
    socket = _op(LOAD, ARGUMENT_0) + known + hidden + _op(RETURN, FAIL | errno.EAFNOSUPPORT)
    bodies = [(machine.clone, clone), (machine.ioctl, ioctl), (machine.socket, socket)]
    if UNIX not in families:
        # One of a pair of datagram sockets can be led to any other name.
        pair = _op(LOAD, ARGUMENT_1) + _op(AND, SOCKET_TYPE) + _fail_when_equal(DATAGRAM, errno.EACCES)
        bodies.append((machine.socketpair, pair))
        for number, argument in machine.of_others:  # prlimit64, setpriority
            bodies.append((number, _op(LOAD, argument) + _op(JUMP_EQUAL, 0, 1, 0) + _op(RETURN, FAIL | errno.EPERM)))
    for number, body in bodies:
        block = body + _op(RETURN, ALLOW)
        program += [_op(JUMP_EQUAL, number, 0, len(block) // INSTRUCTION.size), block]
    program.append(_op(RETURN, ALLOW))
    return b"".join(program)


def known_machine() -> Machine:
    """Raises SandboxUnavailableError when there is no filter for this one."""
    machine = MACHINES.get(platform.machine())
    if machine is None:
        raise SandboxUnavailableError(f"no system call filter for {platform.machine()}; it is known for {', '.join(MACHINES)}")
    return machine


def open_filter() -> int:
    """A descriptor holding the filter for this machine, at its start. The caller closes it."""
    program = filter_program(known_machine())
    fd = os.memfd_create("kcode-seccomp")
    os.write(fd, program)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def filter_without_namespaces(*, network: bool) -> bytes:
    """For a process that shares the host's network: without `network` no socket leads there, and in no case to a service's name.

    Landlock lets every name of a socket be reached. Pairs of connected sockets can still be made.
    """
    machine = known_machine()
    return filter_program(machine, (INET, INET6, NETLINK) if network else (NETLINK,), (*machine.shared, *SHARED_EVERYWHERE))
