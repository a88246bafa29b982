"""What a backend provides, and the first words every worker hears."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import py_compile
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kcode_sandbox.connection import Connection
from kcode_sandbox.errors import FileError, SandboxDiedError, SandboxUnavailableError
from kcode_sandbox.policy import Policy
from kcode_sandbox.protocol import Head, object_of
from kcode_sandbox.watch import Evidence
from kcode_sandbox.worker import landlock

HELLO_TIMEOUT_S = 20.0
PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Attachment:
    """Descriptors above 2 for one command that does not speak through the worker. With `terminal` all are the one terminal."""

    stdin: int
    stdout: int
    stderr: int
    terminal: bool = False

    @property
    def descriptors(self) -> list[int]:
        return sorted({self.stdin, self.stdout, self.stderr})

    @property
    def head(self) -> Head:
        """What the worker is told."""
        return {"stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr, "terminal": self.terminal}


def attached(attachment: Attachment | None) -> tuple[Sequence[int], Head]:
    """The descriptors to pass on and the part of the first words that names them."""
    return ((), {}) if attachment is None else (attachment.descriptors, {"stdio": attachment.head})


class Backend(Protocol):
    """Builds walls for one session. `launch` returns only after they were checked from inside."""

    def description(self, policy: Policy) -> str: ...

    async def launch(self, policy: Policy) -> Connection:
        """Raises SandboxUnavailableError naming the layer that failed and the remedy."""
        ...

    def guard(self) -> list[str]:
        """Hold what a command made that would run on the host; its names, relative to the workspace. Blocks; thread-safe."""
        ...

    def adapt(self, before: Policy, policy: Policy) -> bool:
        """Hold `policy` in the running sandbox; False when that takes a new launch."""
        ...

    def evidence(self) -> Evidence | None:
        """What tells which rule stopped a command; None where there are no walls."""
        ...

    def tidy(self) -> None:
        """Remove what `launch` left on the host. Called once the worker is gone."""
        ...


def weaker_way() -> str:
    """To add to the reason why there is no bubblewrap: what the user may name instead, "" where there is nothing."""
    if landlock.version() < landlock.WALLS_VERSION:
        return ""
    return "; or choose the weaker sandbox without namespaces, --sandbox-backend landlock (what it leaves open: docs/sandbox.md)"


def base_interpreter() -> str:
    """The interpreter under kcode's virtual environment: the worker needs none of the environment's packages."""
    return os.path.realpath(sys.executable)


def worker_argv(package: str) -> list[str]:
    """`package` is where this package's folder is seen by the worker."""
    _compile_once()
    return [base_interpreter(), "-I", "-S", "-B", "-c", worker_code(package)]


def worker_code(package: str, minimum: tuple[int, int] | None = None) -> str:
    """What the interpreter is to run; one older than `minimum` says so and ends."""
    folder = os.path.dirname(package)
    check = ""
    if minimum is not None:
        wanted = ".".join(map(str, minimum))
        told = f"kcode's worker needs Python {wanted} or newer, this one is "
        check = f"sys.version_info >= {minimum} or sys.exit({told!r} + sys.version.split()[0]); "
    return f"import sys; {check}sys.path.insert(0, {folder!r}); from kcode_sandbox.worker.main import main; main()"


def _compile_once() -> None:
    """The folder is read-only inside: what is not compiled here would be compiled again at every start."""
    for path in (*PACKAGE.glob("*.py"), *PACKAGE.glob("worker/*.py")):
        cached = Path(importlib.util.cache_from_source(str(path)))
        try:
            if not cached.exists() or cached.stat().st_mtime < path.stat().st_mtime:
                py_compile.compile(str(path))
        except OSError:
            return  # installed by another user; slower, nothing else


async def greet(connection: Connection, head: Head, body: bytes = b"") -> Head:
    """Say hello and return the facts the worker found. A worker that cannot start is closed and its words are passed on."""
    call = connection.send({"op": "hello", **head}, body, None)
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            reply, _ = await call.answer
        return object_of(reply, "facts")
    except TimeoutError as error:
        connection.kill()
        await connection.close()
        raise SandboxUnavailableError(f"the sandbox did not start within {HELLO_TIMEOUT_S:.0f} s") from error
    except (SandboxDiedError, FileError) as error:
        connection.kill()
        await connection.close()
        raise SandboxUnavailableError(connection.errors or str(error)) from error
