"""The Sandbox as its users hold it: requests to the worker inside, answers checked and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath

from kcode_sandbox.connection import Connection
from kcode_sandbox.errors import FileError, SandboxDiedError, SandboxError, SandboxUnavailableError
from kcode_sandbox.guard import HELD_NAMES
from kcode_sandbox.launch import Backend
from kcode_sandbox.policy import Policy
from kcode_sandbox.protocol import Head, ProtocolError, flag_of, integer_of, number_of, object_of, text_of
from kcode_sandbox.sandbox import ExecResult, FileContent, FileStat, OnOutput, ShellResult, Standing
from kcode_sandbox.violation import report
from kcode_sandbox.watch import Watch

FILE_TIMEOUT_S = 120.0
END_TIMEOUT_S = 12.0
# A command that kills every process it may kill takes the worker with it: that is its result, not a failure of ours.
ENDED_NOTE = b"[the sandbox's processes were killed while this ran; the next call starts it anew: background jobs are gone]\n"
KILLED = 137
STEERING = {".git", *HELD_NAMES}


class WorkerSandbox:
    """One worker behind the walls of `backend`. After `close` every request fails.

    When the worker dies (its own commands may kill it) commands under way end with exit code 137 and a note, file
    requests with SandboxDiedError; the next request starts a new one behind newly checked walls. Requests may run
    concurrently. Start it from a thread that outlives it: the kernel ends the sandbox with the thread that made it.
    """

    def __init__(self, policy: Policy, backend: Backend) -> None:
        self._policy = policy
        self._backend = backend
        self._connection: Connection | None = None
        self._shell: WorkerShell | None = None
        self._watch = Watch(policy, backend.guard, backend.evidence)
        self._reviving = asyncio.Lock()

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def description(self) -> str:
        return self._backend.description(self._policy)

    async def start(self) -> None:
        if self._connection is None:
            self._connection = await self._backend.launch(self._policy)

    async def read(self, path: str, offset: int = 0, max_bytes: int = 10 << 20) -> FileContent:
        head, body = await self._ask({"op": "read", "path": path, "offset": offset, "max_bytes": max_bytes}, FILE_TIMEOUT_S)
        if len(body) > max_bytes:
            raise SandboxDiedError(f"the worker answered with {len(body)} bytes where {max_bytes} were asked for")
        return FileContent(_stat_of(object_of(head, "stat")), body)

    async def write(self, path: str, data: bytes, *, expect_sha256: str | None = None, create_parents: bool = True) -> FileStat:
        request: Head = {"op": "write", "path": path, "expect_sha256": expect_sha256, "create_parents": create_parents}
        head, _ = await self._ask(request, FILE_TIMEOUT_S, data)
        if STEERING & set(PurePosixPath(path).parts):
            await asyncio.to_thread(self._watch.over_write)
        return _stat_of(object_of(head, "stat"))

    async def stat(self, path: str) -> FileStat:
        head, _ = await self._ask({"op": "stat", "path": path}, FILE_TIMEOUT_S)
        return _stat_of(object_of(head, "stat"))

    async def remove(self, path: str) -> None:
        await self._ask({"op": "remove", "path": path}, FILE_TIMEOUT_S)

    async def place(self, path: str, data: bytes, wanted: Standing, expected: Standing) -> bool:
        head: Head = {"op": "place", "path": path, "wanted": asdict(wanted), "expected": asdict(expected)}
        reply, _ = await self._ask(head, FILE_TIMEOUT_S, data)
        return flag_of(reply, "changed")

    async def list_files(self, root: str = ".", *, max_files: int = 200_000) -> list[FileStat]:
        _, body = await self._ask({"op": "list", "root": root, "max_files": max_files}, FILE_TIMEOUT_S)
        return [_row_of(row) for row in body.split(b"\0")[:max_files] if row]

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
        """As the protocol says. An exit code above 128 is a signal's number plus 128."""
        request: Head = {
            "op": "exec",
            "argv": list(argv),
            "cwd": cwd,
            "environment": dict(environment or {}),
            "timeout_s": timeout_s,
            "separate_stderr": separate_stderr,
            "max_output": min(max_output, self._policy.limits.output_bytes),
            "stream": on_output is not None,
        }
        connection = await self._live()
        call = connection.send(request, stdin, on_output)
        try:
            # wait_for would swallow a cancellation that comes together with the answer.
            async with asyncio.timeout(timeout_s + END_TIMEOUT_S):
                head, body = await asyncio.shield(call.answer)
        except asyncio.CancelledError:
            connection.send({"op": "cancel", "target": call.number}, b"", None)
            await _settle(call.answer)
            raise
        except TimeoutError as error:
            raise SandboxDiedError(f"the worker did not end {argv[0]!r} {END_TIMEOUT_S} s after its time") from error
        except SandboxDiedError:
            if connection is not self._connection:
                raise
            head, ended = {}, ExecResult(KILLED, ENDED_NOTE, b"", False, 0, 0.0)
        else:
            ended = _exec_result(head, body)
        result = await asyncio.to_thread(self._watch.over_command, ended, cwd, _unrouted(head))
        report(result.violations)
        return result

    async def run_attached(self, argv: Sequence[str]) -> int:
        """Run one program on the descriptors that the backend was made with; its exit code, above 128 a signal's number plus 128.

        Cancelling kills the whole tree.
        """
        connection = await self._live()
        call = connection.send({"op": "attached", "argv": list(argv)}, b"", None)
        try:
            head, _ = await asyncio.shield(call.answer)
        except asyncio.CancelledError:
            connection.send({"op": "cancel", "target": call.number}, b"", None)
            await _settle(call.answer)
            raise
        return integer_of(head, "exit_code") if head.get("exit_code") is not None else KILLED

    async def shell(self) -> WorkerShell:
        await self._live()
        if self._shell is None:
            self._shell = WorkerShell(self._live, self._watch, self._policy.limits.output_bytes)
        return self._shell

    async def change(self, policy: Policy) -> bool:
        before = self._policy
        if self._connection is None or policy == before or self._backend.adapt(before, policy):
            self._hold(policy)
            return False
        # Asked before anything is closed: what the shell is to have again.
        state = await self._shell.state() if self._shell is not None else b""
        async with self._reviving:
            await self._connection.close()
            self._backend.tidy()
            try:
                self._connection = await self._backend.launch(policy)
                self._hold(policy)
            except SandboxUnavailableError:
                self._connection = await self._backend.launch(before)
                raise
        if self._shell is not None:
            await self._shell.adopt(state)
        return True

    def _hold(self, policy: Policy) -> None:
        self._policy = policy
        self._watch.policy = policy

    async def close(self) -> None:
        connection, self._connection, self._shell = self._connection, None, None
        if connection is not None:
            await connection.close()
            self._backend.tidy()

    async def _live(self) -> Connection:
        async with self._reviving:
            if self._connection is None:
                raise SandboxDiedError("the sandbox is not running; start it first")
            if self._connection.died:
                await self._connection.close()
                self._backend.tidy()
                self._connection = await self._backend.launch(self._policy)
            return self._connection

    async def _ask(self, head: Head, timeout_s: float, body: bytes = b"") -> tuple[Head, bytes]:
        try:
            return await ask(await self._live(), head, timeout_s, body)
        except FileError as error:
            self._watch.over_file(error)
            raise


class WorkerShell:
    """The session's bash. `send` also takes the id of the job that is to get the keys; the newest gets them otherwise.

    A command that ended bash itself (`exit`, `exec`) reports bash's exit code and a line saying so; the next command
    starts a new bash in the same folder with what was exported before. `send` without a running program raises
    FileError "ESRCH". Output has "\\n" line ends and keeps its escape sequences.
    """

    def __init__(self, live: Callable[[], Awaitable[Connection]], watch: Watch, max_output: int) -> None:
        self._live = live
        self._watch = watch
        self._max_output = min(max_output, 8 << 20)

    async def run(self, command: str, timeout_s: float, on_output: OnOutput | None = None) -> ShellResult:
        connection = await self._live()
        call = connection.send(self._request("run", timeout_s, on_output), _bytes_of(command), on_output)
        try:
            async with asyncio.timeout(timeout_s + END_TIMEOUT_S):
                head, body = await asyncio.shield(call.answer)
        except asyncio.CancelledError:
            connection.send(self._request("interrupt", 0.0, None), b"", None)
            await _settle(call.answer)
            raise
        except TimeoutError as error:
            raise SandboxDiedError(f"the worker was silent {END_TIMEOUT_S} s after the command's time") from error
        except SandboxDiedError:
            # Fails again when the sandbox was closed rather than killed.
            await self._live()
            return await self._watched(ShellResult(KILLED, ENDED_NOTE, "", 0, 0.0, ""), {})
        return await self._watched(_shell_result(head, body), head)

    async def send(self, text: str, wait_s: float, job_id: str = "") -> ShellResult:
        request = self._request("send", wait_s, None) | {"job_id": job_id}
        head, body = await ask(await self._live(), request, wait_s + END_TIMEOUT_S, _bytes_of(text))
        return await self._watched(_shell_result(head, body), head)

    async def interrupt(self) -> None:
        """^C to what runs in the current shell; SIGKILL follows where that does not help."""
        await ask(await self._live(), self._request("interrupt", 0.0, None), END_TIMEOUT_S)

    async def resize(self, rows: int, columns: int) -> None:
        await ask(await self._live(), self._request("resize", 0.0, None), END_TIMEOUT_S, f"{rows} {columns}".encode())

    async def restart(self) -> None:
        """End every command and job; the folder stays, exported variables are gone."""
        await ask(await self._live(), self._request("restart", 0.0, None), END_TIMEOUT_S)

    async def state(self) -> bytes:
        """Its folder and what it exported, for `adopt`."""
        return (await ask(await self._live(), self._request("state", 0.0, None), END_TIMEOUT_S))[1]

    async def adopt(self, state: bytes) -> None:
        """Begin as another shell stood."""
        await ask(await self._live(), self._request("adopt", 0.0, None), END_TIMEOUT_S, state)

    async def _watched(self, result: ShellResult, head: Head) -> ShellResult:
        result = await asyncio.to_thread(self._watch.over_shell, result, _unrouted(head))
        report(result.violations)
        return result

    def _request(self, action: str, wait_s: float, on_output: OnOutput | None) -> Head:
        return {
            "op": "shell",
            "action": action,
            "wait_s": wait_s,
            "job_id": "",
            "max_output": self._max_output,
            "stream": on_output is not None,
        }


async def ask(connection: Connection, head: Head, timeout_s: float, body: bytes = b"") -> tuple[Head, bytes]:
    call = connection.send(head, body, None)
    try:
        async with asyncio.timeout(timeout_s):
            return await call.answer
    except TimeoutError as error:
        raise SandboxDiedError(f"the worker did not answer {head['op']!r} within {timeout_s} s") from error


async def _settle(answer: asyncio.Future[tuple[Head, bytes]]) -> None:
    """Wait until what was cancelled has really ended inside, so that nothing of it runs on unseen."""
    with contextlib.suppress(SandboxError, TimeoutError):
        async with asyncio.timeout(END_TIMEOUT_S):
            await asyncio.shield(answer)


def _bytes_of(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _exec_result(head: Head, body: bytes) -> ExecResult:
    split = integer_of(head, "stdout_bytes")
    return ExecResult(
        exit_code=None if head.get("exit_code") is None else integer_of(head, "exit_code"),
        output=body[:split],
        stderr=body[split:],
        timed_out=flag_of(head, "timed_out"),
        dropped_bytes=integer_of(head, "dropped_bytes"),
        duration_s=number_of(head, "duration_s"),
    )


def _unrouted(head: Head) -> int:
    return integer_of(head, "unrouted") if "unrouted" in head else 0


def _stat_of(head: Head) -> FileStat:
    return FileStat(
        path=text_of(head, "path"),
        kind=text_of(head, "kind"),
        size=integer_of(head, "size"),
        mtime_ns=integer_of(head, "mtime_ns"),
        mode=integer_of(head, "mode"),
        sha256=text_of(head, "sha256"),
    )


def _row_of(row: bytes) -> FileStat:
    try:
        size, mtime_ns, mode, name = row.split(b" ", 3)
        return FileStat(os.fsdecode(name), "file", int(size), int(mtime_ns), int(mode))
    except ValueError as error:
        raise ProtocolError(f"bad row in a list of files: {row[:80]!r}") from error


def _shell_result(head: Head, body: bytes) -> ShellResult:
    return ShellResult(
        exit_code=None if head.get("exit_code") is None else integer_of(head, "exit_code"),
        output=body,
        job_id=text_of(head, "job_id"),
        dropped_bytes=integer_of(head, "dropped_bytes"),
        duration_s=number_of(head, "duration_s"),
        cwd=text_of(head, "cwd"),
    )
