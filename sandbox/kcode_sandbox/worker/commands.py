"""One-shot commands: their own session, a time limit, bounded output, and nothing left behind."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kcode_sandbox.protocol import Head
from kcode_sandbox.worker.events import Events, Reader, Writer
from kcode_sandbox.worker.files import FileFailure
from kcode_sandbox.worker.output import Capture
from kcode_sandbox.worker.processes import FULL, Child, Stdio, kill_descendants, send_signal, spawn

DRAIN_S = 2.0
KILL_PATIENCE_S = 6.0


class Job(NamedTuple):
    """What to run. `on_chunk` is called with live output; `on_done` once with the reply's head and body."""

    argv: Sequence[str]
    cwd: str
    environment: Mapping[str, str]
    stdin: bytes
    timeout_s: float
    max_output: int
    separate_stderr: bool
    on_chunk: Callable[[bytes], None] | None
    on_done: Callable[[Head, bytes], None]


class Supervised:
    """A spawned child and the line its supervisor reports; ends the tree on request."""

    def __init__(self, events: Events, child: Child, on_exit: Callable[[int | None, str], None]) -> None:
        """`on_exit` gets the exit code (None: killed by us) and the error of a failed start ("E2 name")."""
        self._events = events
        self._child = child
        self._on_exit = on_exit
        self._report = b""
        self._reported = False
        self.ended = False
        self._reader = Reader(events, child.status_fd, self._on_report, self._on_gone)

    def end(self) -> None:
        """Kill the whole tree. `on_exit` follows once it is gone, if it has not been called yet."""
        if not self.ended:
            send_signal(self._child.pid, signal.SIGTERM)
            # A supervisor can be stopped or killed by what it supervises: then do its work from here.
            self._events.after(KILL_PATIENCE_S, self._end_by_force)

    def _end_by_force(self) -> None:
        if not self.ended:
            kill_descendants(self._child.pid)
            send_signal(self._child.pid, signal.SIGKILL)

    def _on_report(self, data: bytes) -> None:
        self._report += data
        # A program that could not be started is told twice: why, and then the exit code of what was to become it.
        first, ended, _ = self._report.partition(b"\n")
        if not self._reported and ended:
            self._reported = True
            line = first.decode(errors="surrogateescape").strip()
            if line.startswith("E"):
                self._on_exit(127, line)
            else:
                self._on_exit(int(line), "")

    def _on_gone(self) -> None:
        self.ended = True
        os.waitpid(self._child.pid, 0)
        if not self._reported:
            self._reported = True
            self._on_exit(None, "")


def start_failure(line: str) -> FileFailure:
    """The supervisor's "E2 name" as an error that names the program or folder."""
    number, _, what = line[1:].partition(" ")
    code = int(number)
    if code == errno.EAGAIN:
        return FileFailure("EAGAIN", what, f"cannot run {what}: {FULL}")
    name = errno.errorcode.get(code, str(code))
    return FileFailure(name, what, f"cannot run {what}: {os.strerror(code)}")


class Command:
    """A running Job. Lives until its `on_done` has been called."""

    def __init__(self, events: Events, job: Job, on_failure: Callable[[FileFailure], None]) -> None:
        self._events = events
        self._job = job
        self._on_failure = on_failure
        self._started = time.monotonic()
        self._output = Capture(job.max_output)
        self._errors = Capture(job.max_output)
        self._timed_out = False
        self._exit_code: int | None = None
        self._exited = False
        self._done = False
        stdin, feed = os.pipe()
        out, stdout = os.pipe()
        err, stderr = os.pipe() if job.separate_stderr else (-1, stdout)
        try:
            child = spawn(job.argv, job.cwd, job.environment, Stdio(stdin, stdout, stderr))
        except OSError:
            for fd in {feed, out, err} - {-1}:
                os.close(fd)
            raise
        finally:
            for fd in {stdin, stdout, stderr}:
                os.close(fd)
        self._readers = [Reader(events, out, self._on_output, self._check_done)]
        if err >= 0:
            self._readers.append(Reader(events, err, self._on_error_output, self._check_done))
        self._writer = Writer(events, feed)
        self._writer.write(job.stdin)
        self._writer.finish()
        self._tree = Supervised(events, child, self._on_exit)
        self._timer = events.after(job.timeout_s, self._on_timeout)

    def cancel(self) -> None:
        self._timed_out = True
        self._tree.end()

    def _on_timeout(self) -> None:
        if not self._exited:
            self.cancel()

    def _on_output(self, data: bytes) -> None:
        self._output.add(data)
        if self._job.on_chunk is not None:
            self._job.on_chunk(data)

    def _on_error_output(self, data: bytes) -> None:
        self._errors.add(data)
        if self._job.on_chunk is not None:
            self._job.on_chunk(data)

    def _on_exit(self, exit_code: int | None, failure: str) -> None:
        self._exited = True
        self._timer.cancel()
        self._exit_code = None if self._timed_out else exit_code
        # What the program left behind must not outlive it, and would hold its pipes open.
        self._tree.end()
        if failure:
            self._finish_streams()
            self._on_failure(start_failure(failure))
            return
        self._events.after(DRAIN_S, self._finish)
        self._check_done()

    def _check_done(self) -> None:
        if self._exited and not any(reader.open for reader in self._readers):
            self._finish()

    def _finish_streams(self) -> None:
        self._done = True
        self._writer.close()
        for reader in self._readers:
            reader.close()

    def _finish(self) -> None:
        if self._done:
            return
        self._finish_streams()
        output = self._output.take()
        errors = self._errors.take()
        head: Head = {
            "exit_code": self._exit_code,
            "timed_out": self._timed_out,
            "stdout_bytes": len(output),
            "dropped_bytes": self._output.dropped_bytes + self._errors.dropped_bytes,
            "duration_s": time.monotonic() - self._started,
        }
        self._job.on_done(head, output + errors)
