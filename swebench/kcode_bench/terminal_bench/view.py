"""A view of this machine in which a task's folders lie where its image has them: /app, /tests, /logs.

bubblewrap only lays mounts for it; it is no wall. The walls are kcode's own sandbox, which is opened inside of the view, so that
an agent and a test see the image's paths and nothing else of the machine than in any other session.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kcode.errors import SandboxFailed, SandboxUnavailable, StartError
from kcode_bench.bug_run import end_group_of
from kcode_sandbox.detect import usable_binaries
from kcode_sandbox.errors import SandboxUnavailableError

LINE_BYTES = 96 << 20


@dataclass(frozen=True, slots=True)
class View:
    """`binds`: the top folders by name, and where they lie on this machine."""

    binds: Mapping[str, Path]

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in the view.

        Raises StartError when a name is that of a folder kcode itself needs, and SandboxUnavailable without bubblewrap.
        """
        try:
            binary = usable_binaries()[0].path
        except SandboxUnavailableError as error:
            raise SandboxUnavailable(str(error)) from error
        own = {Path(path).resolve().parts[1] for path in (sys.prefix, sys.base_prefix, __file__, *self.binds.values())}
        if clash := own & set(self.binds):
            raise StartError(
                f"/{min(clash)} is where kcode or these results lie, and where the task has a folder; move one of them"
            )
        arguments = [str(binary)]
        for entry in sorted(os.scandir("/"), key=lambda entry: entry.name):
            if entry.name in self.binds:
                continue
            if entry.is_symlink():
                arguments += ["--symlink", os.readlink(entry.path), entry.path]
            elif entry.is_dir():
                # /proc too: a new one would be masked, and kcode's own sandbox could not mount its own below it.
                arguments += ["--dev-bind", entry.path, entry.path]
        for name, folder in self.binds.items():
            arguments += ["--bind", str(folder), f"/{name}"]
        return [*arguments, "--", *command]


@dataclass(frozen=True, slots=True)
class Walls:
    """The sandbox of a box, as paths of the view. `environment` is all that commands get."""

    workspace: str
    writable: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    network: str = "off"

    def line(self) -> str:
        given = {"workspace": self.workspace, "writable": self.writable, "readable": self.readable}
        return json.dumps(given | {"environment": dict(self.environment), "network": self.network})


@dataclass(frozen=True, slots=True)
class Done:
    """`exit_code` is None when it was ended for time."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes


class Box:
    """A sandbox in a view, open within `async with`; processes of one command live on until the box is closed."""

    def __init__(self, view: View, walls: Walls) -> None:
        self._view = view
        self._walls = walls
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> Box:
        argv = self._view.wrap([sys.executable, "-m", "kcode_bench.terminal_bench.inside"])
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, cwd="/", start_new_session=True, limit=LINE_BYTES
        )
        try:
            said = await self._ask(self._walls.line())
            if "error" in said:
                raise SandboxUnavailable(str(said["error"]))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(20):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            end_group_of(process.pid)
            await process.wait()

    async def exec(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        cwd: str = ".",
        environment: Mapping[str, str] | None = None,
        mixed: bool = False,
    ) -> Done:
        """With `mixed`, stdout and stderr come as one stream. Raises SandboxFailed when the box is gone."""
        asked = {"argv": list(argv), "timeout_s": timeout_s, "cwd": cwd, "environment": dict(environment or {}), "mixed": mixed}
        said = await self._ask(json.dumps(asked))
        if "error" in said:
            raise SandboxFailed(str(said["error"]))
        code = said["exit_code"]
        stdout, stderr = (base64.b64decode(str(said[name])) for name in ("stdout", "stderr"))
        return Done(code if isinstance(code, int) else None, stdout, stderr)

    async def _ask(self, line: str) -> dict[str, object]:
        async with self._asking:
            process = self._process
            if process is None or process.stdin is None or process.stdout is None:
                raise SandboxFailed("the sandbox is closed")
            try:
                process.stdin.write(line.encode() + b"\n")
                await process.stdin.drain()
                answer = await process.stdout.readline()
            except (ConnectionError, ValueError) as error:
                raise SandboxFailed(f"the sandbox ended: {error}") from error
            if not answer:
                raise SandboxFailed("the sandbox ended; its last words are on standard error")
            said: dict[str, object] = json.loads(answer)
            return said
