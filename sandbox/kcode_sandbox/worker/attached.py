"""A command on descriptors that came from outside: what it reads and writes never passes through the worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kcode_sandbox.protocol import Head
from kcode_sandbox.worker.commands import Supervised, start_failure
from kcode_sandbox.worker.events import Events
from kcode_sandbox.worker.files import FileFailure
from kcode_sandbox.worker.processes import Stdio, spawn


class AttachedJob(NamedTuple):
    """`on_done` is called once with the reply's head, or `on_failure` when the program could not be started."""

    argv: Sequence[str]
    cwd: str
    environment: Mapping[str, str]
    stdio: Stdio
    on_done: Callable[[Head], None]
    on_failure: Callable[[FileFailure], None]


class AttachedCommand:
    """A running AttachedJob. Its descriptors stay open here, so a worker serves one such command after the other."""

    def __init__(self, events: Events, job: AttachedJob) -> None:
        self._job = job
        child = spawn(job.argv, job.cwd, job.environment, job.stdio)
        self._tree = Supervised(events, child, self._on_exit)

    def cancel(self) -> None:
        self._tree.end()

    def _on_exit(self, exit_code: int | None, failure: str) -> None:
        # What the program left behind must not outlive it.
        self._tree.end()
        if failure:
            self._job.on_failure(start_failure(failure))
        else:
            self._job.on_done({"exit_code": exit_code})
