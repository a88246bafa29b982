"""The session's shell: a current terminal, and those whose command outlived its time and became a job.

A job keeps its terminal. The next command then gets a fresh bash with the folder, exported variables, functions and
options as they were when the job began, so nothing waits for it. Keys go to a job by its id, or to the newest.
"""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from kcode_sandbox.protocol import Head
from kcode_sandbox.worker.events import Events, Timer
from kcode_sandbox.worker.files import FileFailure
from kcode_sandbox.worker.output import Capture
from kcode_sandbox.worker.proxied import proxy_variables
from kcode_sandbox.worker.terminal import Terminal

INTERRUPT_S = 1.5
KILL_S = 1.5
END_PATIENCE_S = 5.0
END_POLL_S = 0.005


class ShellRequest(NamedTuple):
    """`text` is the command or the keys; `wait_s` how long to wait for its end."""

    text: bytes
    wait_s: float
    max_output: int
    on_chunk: Callable[[bytes], None] | None
    on_done: Callable[[Head, bytes], None]


class Run:
    """A terminal and the command it runs, with at most one request waiting for news of it."""

    def __init__(self, shell: Shell, events: Events, environment: Mapping[str, str], cwd: str) -> None:
        self._shell = shell
        self._events = events
        self._timer: Timer | None = None
        self._waiting: ShellRequest | None = None
        self._started = time.monotonic()
        self._capture = Capture(1 << 20)
        self.job_id = ""
        self.cwd = cwd
        self.busy = False
        self.exit_code: int | None = None
        self.terminal = Terminal(events, environment, cwd, self._on_output, self._on_finished, self._on_ended)

    def start(self, request: ShellRequest, job_id: str) -> None:
        self.job_id = job_id
        self.busy = True
        self.exit_code = None
        # Output of background jobs since the last command stays in front.
        early = self._capture.take()
        self._capture = Capture(request.max_output)
        self._capture.add(early)
        self._started = time.monotonic()
        self._wait(request)
        self.terminal.run(request.text)

    def type(self, request: ShellRequest) -> None:
        if self._waiting is not None:
            # Someone waits for the command already: only deliver the keys.
            self.terminal.type(request.text)
            request.on_done(self._reply(), b"")
            return
        self._wait(request)
        if not self.busy:
            self._answer()
        elif request.text:
            self.terminal.type(request.text)

    def interrupt(self) -> None:
        """SIGINT, then SIGKILL to the group in the foreground, then the whole shell."""
        self.terminal.interrupt()
        self._events.after(INTERRUPT_S, self._kill_foreground)

    def _kill_foreground(self) -> None:
        if self.busy:
            self.terminal.signal_foreground(signal.SIGKILL)
            self._events.after(KILL_S, self._kill_shell)

    def _kill_shell(self) -> None:
        if self.busy:
            self.terminal.end()

    def _wait(self, request: ShellRequest) -> None:
        self._waiting = request
        self._timer = self._events.after(request.wait_s, self._answer)

    def _answer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        request, self._waiting = self._waiting, None
        if request is None:
            return
        # The reply is made first: it counts what the capture dropped.
        reply = self._reply()
        output = self._capture.take()
        self._capture = Capture(request.max_output)
        request.on_done(reply, output)
        if not self.busy:
            self._shell.settled(self)

    def _reply(self) -> Head:
        return {
            "exit_code": None if self.busy else self.exit_code,
            "job_id": self.job_id if self.busy else "",
            "dropped_bytes": self._capture.dropped_bytes,
            "duration_s": time.monotonic() - self._started,
            "cwd": self.cwd,
        }

    def _on_output(self, data: bytes) -> None:
        self._capture.add(data)
        if self._waiting is not None and self._waiting.on_chunk is not None:
            self._waiting.on_chunk(data)

    def _on_finished(self, exit_code: int, cwd: str) -> None:
        self.busy = False
        self.exit_code = exit_code
        self.cwd = cwd
        if self._waiting is None:
            self._capture.add(f"[{self.job_id} finished with exit code {exit_code}]\n".encode())
        self._answer()

    def _on_ended(self, exit_code: int | None) -> None:
        if self.busy:
            code = "was killed" if exit_code is None else f"exited with code {exit_code}"
            self._on_output(f"[the shell {code}; the next command starts a new one in {self.cwd}]\n".encode())
        self.busy = False
        self.exit_code = 137 if exit_code is None else exit_code
        self._answer()


class Shell:
    """Answers `run`, `send`, `interrupt`, `restart` and `resize`."""

    def __init__(self, events: Events, environment: Mapping[str, str], cwd: str) -> None:
        self._events = events
        self._environment = environment
        self._workspace = cwd
        self._cwd = cwd
        self._state = b""
        self._numbers = itertools.count(1)
        self._current: Run | None = None
        self._jobs: dict[str, Run] = {}

    def handle(self, action: str, request: ShellRequest, job_id: str) -> None:
        if action == "run":
            self._ready().start(request, f"job-{next(self._numbers)}")
        elif action == "send":
            self._target(job_id).type(request)
        elif action == "interrupt":
            if self._current is not None and self._current.busy:
                self._current.interrupt()
            request.on_done({}, b"")
        elif action == "restart":
            self._restart(request)
        elif action == "state":
            request.on_done({}, os.fsencode(self._cwd) + b"\0" + self._state)
        elif action == "adopt":
            self._adopt(request.text)
            request.on_done({}, b"")
        elif action == "resize":
            rows, _, columns = request.text.partition(b" ")
            for run in self._runs():
                run.terminal.resize(int(rows), int(columns))
            request.on_done({}, b"")
        else:
            raise FileFailure("EINVAL", "", f"unknown shell action {action!r}")

    def settled(self, run: Run) -> None:
        """The end of `run`'s command has been told. A job that is not the current terminal is then over."""
        self._jobs.pop(run.job_id, None)
        if run is self._current:
            self._remember(run)
            if run.terminal.ended:
                self._current = None
        else:
            run.terminal.end()

    def _ready(self) -> Run:
        """A terminal that is free: the current one, or a new one when that is busy or gone."""
        current = self._current
        if current is not None:
            if current.busy:
                self._jobs[current.job_id] = current
            elif not current.terminal.ended:
                return current
        if not os.path.isdir(self._cwd):
            self._cwd = self._workspace  # the folder was removed meanwhile
        fresh = Run(self, self._events, self._environment, self._cwd)
        fresh.terminal.restore(self._state)
        self._current = fresh
        return fresh

    def _target(self, job_id: str) -> Run:
        if job_id:
            found = self._jobs.get(job_id)
            if found is None and self._current is not None and self._current.job_id == job_id:
                found = self._current
        else:
            # A job that ended unseen still has its last words to say.
            running = [run for run in self._runs() if run.busy] or list(self._jobs.values())
            found = running[-1] if running else None
        if found is None:
            what = f"no job {job_id}" if job_id else "no program is running in the shell"
            raise FileFailure("ESRCH", job_id, f"{what}; start one with a command first")
        return found

    def _runs(self) -> list[Run]:
        """Oldest first, the current terminal last."""
        older = [run for run in self._jobs.values() if run is not self._current]
        return older + ([self._current] if self._current is not None else [])

    def _remember(self, run: Run) -> None:
        self._cwd = run.cwd
        if run.terminal.saved_state:
            self._state = run.terminal.saved_state

    def _adopt(self, text: bytes) -> None:
        """Begin as the shell of another worker stood, but for the way out, which is this one's own."""
        cwd, _, state = text.partition(b"\0")
        if os.path.isdir(cwd):
            self._cwd = os.fsdecode(cwd)
        if state:
            own = (
                f"export {name}={shlex.quote(self._environment[name])}" if name in self._environment else f"unset {name}"
                for name in proxy_variables(0)
            )
            self._state = state + os.fsencode("\n" + "\n".join(own) + "\n")

    def _restart(self, request: ShellRequest) -> None:
        """End every terminal and forget what they had exported; the folder is kept.

        Answered once everything is gone: until then it counts against the limit of processes.
        """
        ending = self._runs()
        for run in ending:
            run.terminal.end()
        deadline = time.monotonic() + END_PATIENCE_S

        def look() -> None:
            if time.monotonic() < deadline and not all(run.terminal.gone for run in ending):
                self._events.after(END_POLL_S, look)
            else:
                request.on_done({}, b"")

        look()
        self._jobs.clear()
        self._current = None
        self._state = b""
