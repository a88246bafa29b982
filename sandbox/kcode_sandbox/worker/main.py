"""The process inside: reads requests from stdin, answers on stdout, and takes everything with it when stdin ends.

Run as `python -I -S -B -c "..."`; needs nothing but the standard library, and of that at the start only what starts fast: every
session waits for it. Requests are answered as they finish, so a
long command delays nobody; a request's id comes back in its reply and in the output frames before it.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import deque
from collections.abc import Callable, Mapping

from kcode_sandbox.protocol import (
    Decoder,
    Head,
    ProtocolError,
    encode,
    environment_of,
    flag_of,
    integer_of,
    number_of,
    object_of,
    text_of,
    texts_of,
)
from kcode_sandbox.worker import files, home, landlock, selfcheck
from kcode_sandbox.worker.attached import AttachedCommand, AttachedJob
from kcode_sandbox.worker.commands import Command, Job
from kcode_sandbox.worker.events import Events, Reader, Writer
from kcode_sandbox.worker.files import FileFailure
from kcode_sandbox.worker.processes import FULL, PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, Stdio, kill_supervised, prctl
from kcode_sandbox.worker.proxied import proxy_variables
from kcode_sandbox.worker.routes import Routes
from kcode_sandbox.worker.shell import Shell, ShellRequest
from kcode_sandbox.worker.walls import apply_filter, raise_walls

# Live output is for the eye: while the client is this far behind, chunks are left out (the result still has them).
MAX_STREAM_BACKLOG = 8 << 20
RLIMITS = {
    "processes": resource.RLIMIT_NPROC,
    "file_bytes": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
    "memory_bytes": resource.RLIMIT_AS,
}


class Worker:
    """Dispatches requests. Everything happens on the main thread but listing files, which may take seconds."""

    def __init__(self, source_fd: int, sink_fd: int) -> None:
        self._events = Events()
        self._decoder = Decoder()
        self._sink = Writer(self._events, sink_fd)
        Reader(self._events, source_fd, self._on_data, self._events.stop)
        self._environment: dict[str, str] = {}
        self._commands: dict[int, Command | AttachedCommand] = {}
        self._stdio: Stdio | None = None
        self._shell: Shell | None = None
        self._routes = Routes()
        self._results: deque[bytes] = deque()
        wake_fd, self._wake_fd = os.pipe()
        Reader(self._events, wake_fd, self._on_wake, self._events.stop)
        self._operations: dict[str, Callable[[int, Head, bytes], None]] = {
            "hello": self._hello,
            "read": self._read,
            "write": self._write,
            "stat": self._stat,
            "remove": self._remove,
            "place": self._place,
            "list": self._list,
            "exec": self._exec,
            "attached": self._attached,
            "cancel": self._cancel,
            "shell": self._shell_request,
        }

    def run(self) -> None:
        self._events.run()

    def _on_data(self, data: bytes) -> None:
        for head, body in self._decoder.feed(data):
            number = integer_of(head, "id")
            try:
                self._operations[text_of(head, "op")](number, head, body)
            except FileFailure as failure:
                self._fail(number, failure)
            except OSError as error:
                self._fail(number, _failure_of(error, head))
            except (ProtocolError, KeyError, ValueError) as error:
                self._fail(number, FileFailure("EINVAL", "", f"bad request: {error}"))

    def _reply(self, number: int, head: Head, body: bytes = b"") -> None:
        self._sink.write(encode({"id": number, **head}, body))

    def _fail(self, number: int, failure: FileFailure) -> None:
        self._reply(number, {"error": {"code": failure.code, "path": failure.path, "message": str(failure)}})

    def _chunk_sink(self, number: int, head: Head) -> Callable[[bytes], None] | None:
        if not flag_of(head, "stream"):
            return None

        def send(data: bytes) -> None:
            if self._sink.pending_bytes < MAX_STREAM_BACKLOG:
                self._sink.write(encode({"id": number, "event": "output"}, data))

        return send

    def _hello(self, number: int, head: Head, body: bytes) -> None:
        """Take the workspace, environment and limits; `body` is the private git configuration, "" for none."""
        os.chdir(text_of(head, "workspace"))
        self._environment = environment_of(head, "environment")
        if flag_of(head, "private_home"):
            home.furnish(self._environment["HOME"], body)
        if head.get("walls"):
            raise_walls(object_of(head, "walls"))
        if head.get("filter"):
            apply_filter(bytes.fromhex(text_of(head, "filter")))
        fence = landlock.fence(texts_of(head, "fence")) if head.get("fence") else 0
        if head.get("proxy"):
            from kcode_sandbox.worker.relay import start_relay

            self._environment |= proxy_variables(start_relay(text_of(head, "proxy")))
        if flag_of(head, "own_network"):
            self._routes.watch()
        _limit(object_of(head, "limits"))
        self._stdio = _stdio_of(object_of(head, "stdio"))
        facts = selfcheck.look_around(object_of(head, "check")) | {"landlock": fence}
        self._reply(number, {"facts": facts, "pid": os.getpid()})

    def _read(self, number: int, head: Head, body: bytes) -> None:
        stat, data = files.read_file(text_of(head, "path"), integer_of(head, "offset"), integer_of(head, "max_bytes"))
        self._reply(number, {"stat": stat}, data)

    def _write(self, number: int, head: Head, body: bytes) -> None:
        expected = None if head.get("expect_sha256") is None else text_of(head, "expect_sha256")
        stat = files.write_file(text_of(head, "path"), body, expected, flag_of(head, "create_parents"))
        self._reply(number, {"stat": stat})

    def _stat(self, number: int, head: Head, body: bytes) -> None:
        self._reply(number, {"stat": files.file_stat(text_of(head, "path"))})

    def _remove(self, number: int, head: Head, body: bytes) -> None:
        files.remove(text_of(head, "path"))
        self._reply(number, {})

    def _place(self, number: int, head: Head, body: bytes) -> None:
        from kcode_sandbox.worker import placing

        wanted, expected = (placing.standing_of(object_of(head, name)) for name in ("wanted", "expected"))
        self._reply(number, {"changed": placing.place(text_of(head, "path"), wanted, body, expected)})

    def _list(self, number: int, head: Head, body: bytes) -> None:
        root, max_files = text_of(head, "root"), integer_of(head, "max_files")
        threading.Thread(target=self._list_aside, args=(number, root, max_files, dict(self._environment)), daemon=True).start()

    def _list_aside(self, number: int, root: str, max_files: int, environment: Mapping[str, str]) -> None:
        from kcode_sandbox.worker.listing import list_files

        try:
            entries = list_files(root, max_files, environment)
            rows = [f"{found.st_size} {found.st_mtime_ns} {found.st_mode & 0o7777} {name}" for name, found in entries]
            frame = encode({"id": number}, "\0".join(rows).encode(errors="surrogateescape"))
        except OSError as error:
            failure = _failure_of(error, {"path": root})
            details = {"code": failure.code, "path": root, "message": str(failure)}
            frame = encode({"id": number, "error": details})
        self._results.append(frame)
        os.write(self._wake_fd, b"!")

    def _on_wake(self, data: bytes) -> None:
        while self._results:
            self._sink.write(self._results.popleft())

    def _exec(self, number: int, head: Head, body: bytes) -> None:
        def done(reply: Head, output: bytes) -> None:
            self._commands.pop(number, None)
            self._reply(number, {**reply, "unrouted": self._routes.new()}, output)

        def failed(failure: FileFailure) -> None:
            self._commands.pop(number, None)
            self._fail(number, failure)

        job = Job(
            argv=_argv_of(head),
            cwd=text_of(head, "cwd"),
            environment=self._environment | environment_of(head, "environment"),
            stdin=body,
            timeout_s=number_of(head, "timeout_s"),
            max_output=integer_of(head, "max_output"),
            separate_stderr=flag_of(head, "separate_stderr"),
            on_chunk=self._chunk_sink(number, head),
            on_done=done,
        )
        self._commands[number] = Command(self._events, job, failed)

    def _attached(self, number: int, head: Head, body: bytes) -> None:
        def done(reply: Head) -> None:
            self._commands.pop(number, None)
            self._reply(number, reply)

        def failed(failure: FileFailure) -> None:
            self._commands.pop(number, None)
            self._fail(number, failure)

        if self._stdio is None:
            raise FileFailure("EINVAL", "", "no descriptors were given to this sandbox")
        job = AttachedJob(_argv_of(head), os.getcwd(), self._environment, self._stdio, done, failed)
        self._commands[number] = AttachedCommand(self._events, job)

    def _cancel(self, number: int, head: Head, body: bytes) -> None:
        """Ends a command; its own reply still comes. Unknown numbers have finished meanwhile."""
        command = self._commands.get(integer_of(head, "target"))
        if command is not None:
            command.cancel()

    def _shell_request(self, number: int, head: Head, body: bytes) -> None:
        if self._shell is None:
            self._shell = Shell(self._events, self._environment, os.getcwd())
        request = ShellRequest(
            text=body,
            wait_s=number_of(head, "wait_s"),
            max_output=integer_of(head, "max_output"),
            on_chunk=self._chunk_sink(number, head),
            on_done=lambda reply, output: self._reply(number, {**reply, "unrouted": self._routes.new()}, output),
        )
        self._shell.handle(text_of(head, "action"), request, text_of(head, "job_id"))


def _argv_of(head: Head) -> list[str]:
    argv = texts_of(head, "argv")
    if not argv or any("\0" in part for part in argv):
        raise FileFailure("EINVAL", "", f"argv {argv!r} names no program or holds a NUL")
    return argv


def _stdio_of(head: Head) -> Stdio | None:
    if not head:
        return None
    stdin, stdout, stderr = (integer_of(head, name) for name in ("stdin", "stdout", "stderr"))
    for fd in (stdin, stdout, stderr):
        # The command has them as 0 to 2 and under no other number.
        os.set_inheritable(fd, False)
    return Stdio(stdin, terminal=stdin) if flag_of(head, "terminal") else Stdio(stdin, stdout, stderr)


def _failure_of(error: OSError, head: Head) -> FileFailure:
    path = str(head.get("path") or head.get("cwd") or error.filename or "")
    code = errno.errorcode.get(error.errno or 0, "EIO")
    if code == "EAGAIN":
        return FileFailure(code, "", FULL)
    reason = error.strerror or str(error)
    hint = {
        "EROFS": "; it is read-only in this sandbox",
        "EBUSY": "; it is protected in this sandbox",
    }.get(code, "")
    return FileFailure(code, path, f"{path}: {reason}{hint}" if path else f"{reason}{hint}")


def _limit(limits: Head) -> None:
    """Bounds for this process and all it starts; a bound above the host's own is lowered to it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, kind in RLIMITS.items():
        if limits.get(name) is None:
            continue
        wanted = integer_of(limits, name)
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        resource.setrlimit(kind, (wanted, wanted))


def main() -> None:
    # The commands run as the same user: without this they could ptrace the worker and answer in its name.
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    source_fd, sink_fd = os.dup(0), os.dup(1)
    null_fd = os.open(os.devnull, os.O_RDWR)
    os.dup2(null_fd, 0)
    os.dup2(2, 1)
    try:
        Worker(source_fd, sink_fd).run()
    finally:
        kill_supervised()
