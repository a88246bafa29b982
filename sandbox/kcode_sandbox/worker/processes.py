"""Starting programs so that nothing they leave behind can escape, and ending whole trees.

Each program runs under a *supervisor*: a forked process that is a child subreaper, so every orphan of the program
(double fork, setsid, cleared environment) stays its descendant. SIGTERM to the supervisor kills all of them; it also
arrives by itself when the worker dies.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kcode_sandbox.worker import landlock

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
FORK_PATIENCE_S = 2.0
FULL = "no further process can be started, as many as this sandbox allows are running: end some in the background (jobs, kill)"

_libc = ctypes.CDLL(None, use_errno=True)
# The ruleset that commands, and not this process, stand behind; -1 where they need none.
_fences = [-1]
_supervisors: set[int] = set()


def fence_commands(ruleset_fd: int) -> None:
    """Put every program that is started from now on behind one more Landlock fence."""
    _fences[0] = ruleset_fd


def prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


class Stdio(NamedTuple):
    """Descriptors for the program. With `terminal` set it becomes the controlling terminal and 0-2, then `stdin` replaces 0.

    `extra` maps a descriptor of ours to its number in the program.
    """

    stdin: int
    stdout: int = -1
    stderr: int = -1
    terminal: int = -1
    extra: tuple[tuple[int, int], ...] = ()


class Child(NamedTuple):
    """`pid` is the supervisor's. `status_fd` gives one line: the exit code, or "E<errno> <what>"; then end of file."""

    pid: int
    status_fd: int


def spawn(argv: Sequence[str], cwd: str, environment: Mapping[str, str], stdio: Stdio) -> Child:
    """Start `argv` in its own session under a supervisor. Call it from the main thread only."""
    if _fences[0] >= 0 and stdio.terminal >= 0:
        # By the file itself: another terminal that gets the same number later is not meant.
        landlock.allow_device(_fences[0], os.ttyname(stdio.terminal))
    status_fd, report_fd = os.pipe()
    worker = os.getpid()
    try:
        pid = _fork()
    except OSError:
        os.close(status_fd)
        os.close(report_fd)
        raise
    if pid == 0:
        try:
            _supervise(argv, cwd, environment, stdio, report_fd, worker)
        except OSError:
            # Nobody is there to be told of an end: the worker has just gone, and takes everything with it.
            kill_descendants(os.getpid())
        finally:
            os._exit(0)
    os.close(report_fd)
    _supervisors.add(pid)
    return Child(pid, status_fd)


def _fork() -> int:
    """Waits a moment where there are too many processes: those of a tree that is being ended count until they are gone."""
    deadline = time.monotonic() + FORK_PATIENCE_S
    while True:
        try:
            return os.fork()
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _supervise(argv: Sequence[str], cwd: str, environment: Mapping[str, str], stdio: Stdio, report_fd: int, worker: int) -> None:
    def end(signum: int, frame: object) -> None:
        kill_descendants(os.getpid())
        reap()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != worker:
        return
    ours = {stdio.stdin, stdio.stdout, stdio.stderr, stdio.terminal, report_fd, *_fences, *(fd for fd, _ in stdio.extra)}
    # A copy of another program's stdin pipe would keep that program from ever seeing its end.
    close_all_but(ours)
    supervisor = os.getpid()
    try:
        main = _fork()
    except OSError as error:
        os.write(report_fd, f"E{error.errno} {argv[0]}\n".encode(errors="surrogateescape"))
        return
    if main == 0:
        _become(argv, cwd, environment, stdio, report_fd, supervisor)
    for fd in ours - {report_fd, -1}:
        os.close(fd)
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        if pid == main:
            code = os.waitstatus_to_exitcode(status)
            os.write(report_fd, b"%d\n" % (code if code >= 0 else 128 - code))


def _become(argv: Sequence[str], cwd: str, environment: Mapping[str, str], stdio: Stdio, report_fd: int, supervisor: int) -> None:
    what = cwd
    try:
        # What is ignored stays ignored after exec, and bash could then never be interrupted.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(0)
        if stdio.terminal >= 0:
            os.login_tty(os.dup(stdio.terminal))
        else:
            os.setsid()
            os.dup2(stdio.stdout, 1)
            os.dup2(stdio.stderr, 2)
        os.dup2(stdio.stdin, 0)
        for fd, number in stdio.extra:
            os.dup2(fd, number)
        os.chdir(cwd)
        what = argv[0]
        if _fences[0] >= 0:
            landlock.restrict(_fences[0])
        os.execvpe(argv[0], list(argv), dict(environment))
    except OSError as error:
        os.write(report_fd, f"E{error.errno} {what}\n".encode(errors="surrogateescape"))
    finally:
        os._exit(127)


def close_all_but(keep: set[int]) -> None:
    """For a forked process: every descriptor that is not in `keep`."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd not in keep:
            try:
                os.close(fd)
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise


def descendants(root: int) -> list[int]:
    """The living processes below `root`, parents first."""
    children: dict[int, list[int]] = {}
    dead: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state in (b"Z", b"X"):
            # Left out of the result, not of the tree: its children may have been read before they got another parent.
            dead.add(int(name))
        children.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    pending = [root]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return [pid for pid in found if pid not in dead]


def kill_descendants(root: int, timeout_s: float = 5.0) -> bool:
    """Kill everything below `root`; true when nothing was left within `timeout_s`.

    All are stopped before any is killed, so that a program that forks faster than we scan still ends.
    """
    return _kill_below(root, timeout_s, set())


def kill_supervised(timeout_s: float = 5.0) -> bool:
    """`kill_descendants` of this process, the supervisors last and never stopped.

    If this process is killed halfway, each of them learns it and ends what is left of its tree. Stopped, it could not.
    """
    return _kill_below(os.getpid(), timeout_s, _supervisors)


def _kill_below(root: int, timeout_s: float, last: set[int]) -> bool:
    """Two looks that find nothing make an end: one may miss a process whose parent went while it looked."""
    deadline = time.monotonic() + timeout_s
    empty = 0
    while time.monotonic() < deadline:
        pids = descendants(root)
        first = [pid for pid in pids if pid not in last]
        for step in (signal.SIGSTOP, signal.SIGKILL):
            for pid in first:
                send_signal(pid, step)
        empty = empty + 1 if not first else 0
        if empty > 1:
            if not pids:
                return True
            for pid in pids:
                send_signal(pid, signal.SIGKILL)
        time.sleep(0.002)
    return not descendants(root)


def reap() -> None:
    """Wait for every child that is dead already: the dead count against the limit of processes."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def send_signal(pid: int, number: int) -> bool:
    """False when there is no such process (any more)."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False
    return True
