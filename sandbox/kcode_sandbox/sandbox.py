"""The one door: whatever a model causes to be read, written or run goes through a Sandbox.

Paths are text, absolute or relative to the workspace; they are resolved inside the sandbox, never by the caller.
client.py implements it for every backend: bubblewrap.py (default), landlock.py, container.py, and
direct.py (danger-full-access: the same worker without walls).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kcode_sandbox.policy import Policy
from kcode_sandbox.violation import Violation

OnOutput = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class FileStat:
    """`kind` is "file", "dir" or "other"; `path` is the real path inside; `sha256` is "" unless content was read or written."""

    path: str
    kind: str
    size: int
    mtime_ns: int
    mode: int
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class FileContent:
    """`data` holds at most the bytes asked for; `stat.size` is the whole size."""

    stat: FileStat
    data: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands at a path itself, no link followed. `sha256` is of a file's content or a link's target, else ""."""

    kind: Literal["file", "link", "folder", "other", "absent"]
    executable: bool = False
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class ExecResult:
    """A one-shot command. `output` is stdout and stderr in one stream unless they were kept apart (then stdout only).

    `exit_code` is None when it was killed for time. `dropped_bytes` counts output cut from the middle.
    """

    exit_code: int | None
    output: bytes
    stderr: bytes
    timed_out: bool
    dropped_bytes: int
    duration_s: float
    held: tuple[str, ...] = ()
    """What the command made in the workspace and what was renamed, since it would run outside; see guard.py."""
    violations: tuple[Violation, ...] = ()
    """What the walls stopped; what was held is among it."""


@dataclass(frozen=True, slots=True)
class ShellResult:
    """A command of the persistent shell. `exit_code` None: still running in the background under `job_id`."""

    exit_code: int | None
    output: bytes
    job_id: str
    dropped_bytes: int
    duration_s: float
    cwd: str
    held: tuple[str, ...] = ()
    """As for ExecResult."""
    violations: tuple[Violation, ...] = ()
    """As for ExecResult."""


class Shell(Protocol):
    """A real bash on a pty that lives as long as the session: cd, exports and functions persist."""

    async def run(self, command: str, timeout_s: float, on_output: OnOutput | None = None) -> ShellResult:
        """Run `command`; after `timeout_s` it goes on in the background and the result has exit_code None.

        Cancelling the call interrupts the command (SIGINT, then SIGKILL of its group) and keeps the shell.
        """
        ...

    async def send(self, text: str, wait_s: float, job_id: str = "") -> ShellResult:
        """Send keys (control characters as they are) to a job, or to the newest running program, and collect output for `wait_s`.

        Raises FileError "ESRCH" when nothing runs.
        """
        ...

    async def restart(self) -> None: ...


class Sandbox(Protocol):
    @property
    def policy(self) -> Policy: ...

    @property
    def description(self) -> str:
        """One line for the status bar, e.g. "bubblewrap · workspace-write · network off"."""
        ...

    async def start(self) -> None:
        """Build the walls, check them from inside, start the worker. Raises SandboxUnavailableError."""
        ...

    async def read(self, path: str, offset: int = 0, max_bytes: int = 10 << 20) -> FileContent: ...

    async def write(self, path: str, data: bytes, *, expect_sha256: str | None = None, create_parents: bool = True) -> FileStat:
        """Replace or create a file atomically, keeping its permissions.

        `expect_sha256` of the present content ("" means: must not exist yet); a difference raises FileError "STALE" and
        nothing is written.
        """
        ...

    async def stat(self, path: str) -> FileStat: ...

    async def remove(self, path: str) -> None: ...

    async def place(self, path: str, data: bytes, wanted: Standing, expected: Standing) -> bool:
        """Make what stands at `path`, relative to the workspace, a file or link of `data`, or absent.

        No link is followed. False when it was so already; FileError "STALE" when it is neither that nor what was expected, and
        then nothing is changed. Folders are made as needed, and removed when a deletion leaves them empty.
        """
        ...

    async def list_files(self, root: str = ".", *, max_files: int = 200_000) -> list[FileStat]:
        """Files below `root`, relative to the workspace, that git does not ignore, newest first; never inside .git."""
        ...

    async def exec(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        cwd: str = ".",
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        separate_stderr: bool = False,
        max_output: int = 8 << 20,
        on_output: OnOutput | None = None,
    ) -> ExecResult:
        """Run one program to its end in its own session; at `timeout_s` or on cancellation the whole tree is killed."""
        ...

    async def shell(self) -> Shell:
        """The session's shell, started at first use."""
        ...

    async def change(self, policy: Policy) -> bool:
        """Hold `policy` from now on; whether everything inside was ended and started anew for it.

        The shell keeps its folder and what it exported, background jobs end. When the walls for it cannot be built the old
        policy stays and SandboxUnavailableError is raised.
        """
        ...

    async def close(self) -> None:
        """End everything inside. Idempotent; nothing survives."""
        ...
