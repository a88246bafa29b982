"""Harbor's environment for machines without Docker: `harbor run -e kcode_bench.harbor.environment:BwrapEnvironment`.

The task's folders are made from its Dockerfile as for `kcode terminal-bench` and lie, under the image's paths, in kcode's own
sandbox, which lives from start to stop. What takes a container is refused before the start, with its line.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kcode_bench.terminal_bench.dockerfile import Plan, read_dockerfile
from kcode_bench.terminal_bench.view import Box, Done, Walls
from kcode_bench.terminal_bench.world import World, build, lay_stand_ins
from kcode_sandbox.detect import usable_binaries
from kcode_sandbox.errors import SandboxUnavailableError

if TYPE_CHECKING:
    from kcode_bench.harbor.shapes import EnvironmentBase as BaseEnvironment
else:
    BaseEnvironment = import_module("harbor.environments.base").BaseEnvironment
_base = import_module("harbor.environments.base")
_capabilities = import_module("harbor.environments.capabilities")

NO_LIMIT_S = 24 * 3600.0
COPY_LIMIT_S = 600.0
TIMED_OUT = 124
# What Harbor itself uses in an environment.
OWN_TOPS = ("tests", "logs", "solution", "installed-agent")
STAGE = "kcode-stage"


class BwrapEnvironment(BaseEnvironment):
    """One trial's folders and their sandbox. Files come in and go out through the sandbox, so that no link in it leads out."""

    _place: tempfile.TemporaryDirectory[str] | None = None
    _world: World | None = None
    _open: AsyncExitStack | None = None
    _box: Box | None = None

    @staticmethod
    def type() -> str:
        return "bwrap"

    @property
    def capabilities(self) -> object:
        return _capabilities.EnvironmentCapabilities(disable_internet=True)

    @classmethod
    def resource_capabilities(cls) -> object:
        """Neither processors nor memory are bounded."""
        return _capabilities.EnvironmentResourceCapabilities()

    @classmethod
    def preflight(cls) -> None:
        try:
            usable_binaries()
        except SandboxUnavailableError as error:
            raise SystemExit(f"BwrapEnvironment: {error}") from error

    def _plan(self) -> Plan:
        given = self.task_env_config
        return read_dockerfile(self.environment_dir / "Dockerfile", self.environment_dir, given.workdir or "")

    def _validate_definition(self) -> None:
        """Raises ValueError with every line that takes a container."""
        if obstacles := self._plan().obstacles:
            raise ValueError(f"{self.environment_name} cannot be run without a container: {'; '.join(obstacles)}")

    async def start(self, force_build: bool) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="kcode-harbor-", ignore_cleanup_errors=True)
        self._world = await asyncio.to_thread(_new_world, Path(self._place.name), self._plan())
        await build(self._world)
        await self._the_box()

    async def stop(self, delete: bool) -> None:
        await self._shut()
        if self._place is not None:
            self._place.cleanup()
            self._place = None

    async def exec(
        self,
        command: str,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        timeout_sec: int | None = None,
        user: str | int | None = None,
    ) -> object:
        """`user` makes no difference: there is one in the sandbox, and it owns the task's folders."""
        merged = self._merge_env(env) or {}
        done = await self._do(["bash", "-c", command], timeout_sec or NO_LIMIT_S, cwd, merged)
        stderr = done.stderr.decode(errors="replace")
        if done.exit_code is None:
            stderr += f"\nkcode: ended after {timeout_sec} s"
        code = TIMED_OUT if done.exit_code is None else done.exit_code
        return _base.ExecResult(stdout=done.stdout.decode(errors="replace"), stderr=stderr, return_code=code)

    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        staged = self._staged()
        await asyncio.to_thread(shutil.copy, source_path, staged / "file")
        script = 'mkdir -p "$(dirname "$2")" && cp --remove-destination "$1" "$2"'
        await self._carry(script, f"/{STAGE}/{staged.name}/file", target_path, staged)

    async def upload_dir(self, source_dir: Path | str, target_dir: str) -> None:
        staged = self._staged()
        await asyncio.to_thread(shutil.copytree, source_dir, staged / "dir", symlinks=True)
        script = 'mkdir -p "$2" && cp -a --no-preserve=ownership --remove-destination "$1/." "$2"'
        await self._carry(script, f"/{STAGE}/{staged.name}/dir", target_dir, staged)

    async def download_file(self, source_path: str, target_path: Path | str) -> None:
        staged = self._staged()
        await self._carry('cp "$1" "$2/file"', source_path, f"/{STAGE}/{staged.name}")
        await asyncio.to_thread(shutil.copy, staged / "file", target_path, follow_symlinks=False)
        shutil.rmtree(staged)

    async def download_dir(self, source_dir: str, target_dir: Path | str) -> None:
        staged = self._staged()
        await self._carry('cp -r "$1/." "$2"', source_dir, f"/{STAGE}/{staged.name}")
        await asyncio.to_thread(shutil.copytree, staged, target_dir, ignore=_all_but_plain, dirs_exist_ok=True)
        shutil.rmtree(staged)

    def _staged(self) -> Path:
        """A new folder that both sides see. The other side could change it, but nothing in it is followed or trusted here."""
        assert self._world is not None
        return Path(tempfile.mkdtemp(dir=self._world.folder / STAGE))

    async def _carry(self, script: str, source: str, target: str, staged: Path | None = None) -> None:
        done = await self._do(["bash", "-c", script, "carry", source, target], COPY_LIMIT_S, None, {})
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
        if done.exit_code != 0:
            said = done.stderr.decode(errors="replace").strip() or f"ended with {done.exit_code}"
            raise RuntimeError(f"cannot copy {source} to {target} in the sandbox: {said}")

    async def _do(self, argv: list[str], timeout_s: float, cwd: str | None, environment: dict[str, str]) -> Done:
        """Giving up ends the sandbox with all its processes; the next command gets a new one over the same folders."""
        box = await self._the_box()
        assert self._world is not None
        try:
            return await box.exec(argv, timeout_s=timeout_s, cwd=cwd or self._world.plan.workdir, environment=environment)
        except asyncio.CancelledError:
            await self._shut()
            raise

    async def _the_box(self) -> Box:
        if self._box is None:
            assert self._world is not None
            stack = AsyncExitStack()
            world = self._world
            view = world.view({name: world.folder / name for name in (*OWN_TOPS, STAGE)})
            network = "on" if self._network_is_public else "off"
            self._box = await stack.enter_async_context(Box(view, _walls(world, network)))
            self._open = stack
        return self._box

    async def _shut(self) -> None:
        stack, self._open, self._box = self._open, None, None
        if stack is not None:
            await stack.aclose()


def _walls(world: World, network: str) -> Walls:
    """The packages of the kcode that runs this can be read, so that it can be the installed agent too."""
    walls = world.walls(tuple(f"/{name}" for name in (*OWN_TOPS, STAGE)), network)
    packages = ("kcode", "kcode_sandbox", "kcode_prompts", "kcode_bench")
    found = [str(Path(spec.origin).parent.parent) for spec in map(find_spec, packages) if spec is not None and spec.origin]
    return replace(walls, readable=tuple(dict.fromkeys((*walls.readable, *found))))


def _new_world(place: Path, plan: Plan) -> World:
    folder = place.resolve()
    world = World(folder / "world", plan, lay_stand_ins(folder / "tools"))
    program = folder / "tools" / "kcode"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m kcode "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    for name in (*OWN_TOPS, STAGE, "logs/agent", "logs/verifier", "logs/artifacts"):
        (world.folder / name).mkdir(parents=True)
    return world


def _all_but_plain(folder: str, names: list[str]) -> set[str]:
    """What is neither a file nor a folder itself: a link could name any file of this machine."""
    return {name for name in names if (path := Path(folder, name)).is_symlink() or not (path.is_file() or path.is_dir())}
