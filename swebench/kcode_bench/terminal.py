"""A program on a terminal of its own: what is typed goes in, what it writes is read with the time it came."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

PIECE_BYTES = 1 << 16
END_S = 5.0
HERTZ = os.sysconf("SC_CLK_TCK")


class Terminal:
    """Leaving the context ends the program and what it started. Times are those of `time.perf_counter`."""

    def __init__(self, argv: Sequence[str], folder: Path, environment: Mapping[str, str], columns: int, rows: int) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._seen = b""
        self.started = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                argv, cwd=folder, env=dict(environment), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
            )
        finally:
            os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        os.close(self._ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def type(self, text: str) -> None:
        """As a keyboard does; what was written before is forgotten, so that `wait` sees only what follows."""
        self._seen = b""
        os.write(self._ours, text.encode())

    def forget(self) -> None:
        """Let `wait` see only what follows."""
        self._seen = b""

    def wait(self, text: str, timeout_s: float = 60.0) -> float:
        """When `text` came. Raises TimeoutError with the end of what came instead."""
        wanted = text.encode()
        deadline = time.perf_counter() + timeout_s
        while wanted not in self._seen:
            if not self._read(deadline - time.perf_counter()):
                raise TimeoutError(f"{text!r} did not come within {timeout_s:.0f} s, but {self._seen[-2000:]!r}")
            if wanted in self._seen:
                return time.perf_counter()
        return time.perf_counter()

    @property
    def seen(self) -> str:
        """What came since something was typed, as far as it was waited for; at most its end."""
        return self._seen.decode(errors="replace")

    def ended(self, timeout_s: float = 30.0) -> int:
        """The exit code, when the program has ended by itself. Raises TimeoutExpired."""
        deadline = time.perf_counter() + timeout_s
        # Who does not read what a program writes at its end may keep it from ending.
        while self._read(deadline - time.perf_counter()):
            pass
        return self._process.wait(max(1.0, deadline - time.perf_counter()))

    def rest(self, seconds: float) -> None:
        """Read and drop what comes in this time."""
        deadline = time.perf_counter() + seconds
        while (left := deadline - time.perf_counter()) > 0:
            self._read(left)

    def _read(self, timeout_s: float) -> bool:
        """One piece; False when none came in time or the program has ended."""
        ready, _, _ = select.select([self._ours], [], [], max(0.0, timeout_s))
        if not ready:
            return False
        try:
            piece = os.read(self._ours, PIECE_BYTES)
        except OSError:  # EIO: nobody holds the other end any more
            piece = b""
        self._seen = (self._seen + piece)[-4 * PIECE_BYTES :]
        return bool(piece)


def processor_s(pid: int) -> float:
    """Processor time that a process and its descendants have used."""
    return sum(_ticks(member) for member in [pid, *descendants(pid)]) / HERTZ


def descendants(pid: int) -> list[int]:
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += [int(child) for child in path.read_text().split()]
        except OSError:
            continue
    return [member for child in children for member in (child, *descendants(child))]


def resident_mb(pid: int) -> float:
    """Memory of one process alone, in 2^20 bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
