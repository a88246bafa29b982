"""The folders of a task as its Dockerfile makes them, and what commands in them get."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kcode.errors import InfrastructureError
from kcode_bench.terminal_bench import stand_in
from kcode_bench.terminal_bench.dockerfile import Copy, Plan, Run
from kcode_bench.terminal_bench.view import Box, View, Walls
from kcode_sandbox.environment import clean_environment

BUILD_LIMIT_S = 600.0
STAND_INS = ("apt-get", "apt", "curl", "uv", "uvx", "pip", "pip3")


class WorldFailed(InfrastructureError):
    """The folders could not be made; the message names the line of the Dockerfile."""


@dataclass(frozen=True, slots=True)
class World:
    """`folder` holds a folder for each of the task's top folders; `tools` the stand-ins, "" for none."""

    folder: Path
    plan: Plan
    tools: Path | None = None

    def view(self, extra: Mapping[str, Path] | None = None) -> View:
        return View({top: self.folder / top for top in self.plan.tops} | dict(extra or {}))

    @property
    def beside(self) -> tuple[str, ...]:
        """The top folders that the workspace does not hold."""
        return tuple(f"/{top}" for top in self.plan.tops if f"/{top}" != self.plan.workdir)

    def walls(self, writable: tuple[str, ...] = (), network: str = "off", given: Mapping[str, str] | None = None) -> Walls:
        """For commands of the task's own: its environment, a PATH into which the task's folders do not come, the stand-ins."""
        environment = clean_environment(os.environ) | dict(self.plan.environment) | dict(given or {})
        path = clean_environment(os.environ).get("PATH", os.defpath)
        readable = [sys.prefix, sys.base_prefix]
        if self.tools is not None:
            path = f"{self.tools}:{path}"
            readable.append(str(self.tools))
        environment |= {
            "PATH": path,
            "STAND_IN_PYTHON": sys.executable,
            "STAND_IN_NETWORK": network,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return Walls(self.plan.workdir, (*self.beside, *writable), tuple(dict.fromkeys(readable)), environment, network)


def lay_stand_ins(folder: Path) -> Path:
    """The programs of STAND_INS in `folder`."""
    folder.mkdir(parents=True)
    script = shutil.copyfile(stand_in.__file__, folder / "stand_in.py")
    for name in STAND_INS:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "$STAND_IN_PYTHON" -I {script} {name} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    return folder


async def build(world: World) -> None:
    """Make the folders. Raises WorldFailed, SandboxUnavailable, SandboxFailed."""
    plan = world.plan
    for top in plan.tops:
        (world.folder / top).mkdir(parents=True)
    for folder in plan.folders:
        _inside(world, folder).mkdir(parents=True, exist_ok=True)
    first_run = next((i for i, step in enumerate(plan.steps) if isinstance(step, Run)), len(plan.steps))
    for step in plan.steps[:first_run]:
        assert isinstance(step, Copy)
        _copy(world, step)
    if first_run == len(plan.steps):
        return
    async with Box(world.view(), world.walls()) as box:
        for step in plan.steps[first_run:]:
            if isinstance(step, Copy):
                _copy(world, step)
            else:
                await _run(box, step)


def _inside(world: World, path: str) -> Path:
    """Where a path of the image lies; never outside of the world, whatever links were copied into it."""
    found = world.folder / path.strip("/")
    if not found.resolve().is_relative_to(world.folder.resolve()):
        raise WorldFailed(f"Dockerfile: {path} leads out of the task's folders")
    return found


def _copy(world: World, step: Copy) -> None:
    """As COPY does: a folder's content, not the folder itself."""
    target = _inside(world, step.target)
    try:
        for source in step.sources:
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                into = target / source.name if step.target.endswith("/") or target.is_dir() else target
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, into)
    except OSError as error:
        raise WorldFailed(f"Dockerfile:{step.line}: COPY: {error}") from error


async def _run(box: Box, step: Run) -> None:
    done = await box.exec(
        ["/bin/sh", "-c", step.command],
        timeout_s=BUILD_LIMIT_S,
        cwd=step.workdir,
        environment=dict(step.environment),
        mixed=True,
    )
    if done.exit_code != 0:
        last = done.stdout.decode(errors="replace").strip().splitlines()
        how = "was ended for time" if done.exit_code is None else f"ended with {done.exit_code}"
        raise WorldFailed(f"Dockerfile:{step.line}: RUN {step.command[:80]}: {how}" + (f": {last[-1]}" if last else ""))


def read_plain(file: Path, max_bytes: int = 1 << 20) -> bytes | None:
    """What a command left, None when it is no plain file: a link could name any file of this machine."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(handle, "rb") as opened:
        return opened.read(max_bytes) if stat.S_ISREG(os.fstat(handle).st_mode) else None


def write_new(file: Path, data: bytes) -> None:
    """Whatever a command left under that name is replaced, never written through."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)
    with file.open("xb") as opened:
        opened.write(data)
