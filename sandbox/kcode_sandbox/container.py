"""Walls by Docker or Podman: a container of an image that the user names, and only when named.

Commands see the image's system in place of the host's, and of the host what bubblewrap would let them write or protect. The
worker runs on the image's own Python. Nothing is pulled: a start never waits for a registry.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import secrets
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kcode_sandbox.bubblewrap import (
    HOME,
    INSIDE,
    PROXY,
    SHM_BYTES,
    check_workspace,
    common_fault,
    home_of,
    set_canaries,
    writable_folders,
)
from kcode_sandbox.connection import Connection, start_process
from kcode_sandbox.environment import DEFAULTS
from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.gitconfig import private_git_configuration
from kcode_sandbox.guard import Guard
from kcode_sandbox.launch import PACKAGE, Attachment, greet, worker_code
from kcode_sandbox.links import protect_all
from kcode_sandbox.places import Places
from kcode_sandbox.policy import Policy
from kcode_sandbox.protocol import Head, integer_of
from kcode_sandbox.proxy import Proxy, WayOut, open_way_out
from kcode_sandbox.repositories import Protection, sockets_below
from kcode_sandbox.seccomp import filter_program, known_machine
from kcode_sandbox.toolchains import own_programs, workspace_venvs
from kcode_sandbox.watch import Evidence

Engine = Literal["docker", "podman"]
CONTAINERS: tuple[Engine, ...] = ("docker", "podman")
HOME_BYTES = 1 << 30
CLI_TIMEOUT_S = 60.0
MAX_BOUND = 1 << 15
MINIMUM_PYTHON = (3, 9)
# Of the host's variables, what the program needs to find its daemon and its settings. Nothing of it is passed on inside.
CLI_VARIABLES = ("HOME", "PATH", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DBUS_SESSION_BUS_ADDRESS")
CLI_PREFIXES = ("DOCKER_", "CONTAINER_", "CONTAINERS_")
# What the host has and the image has not, or has elsewhere.
OF_THE_HOST = ("VIRTUAL_ENV", "CONDA_", "PYENV_", "UV_", "NVM_", "VOLTA_", "FNM_", "CARGO_", "RUSTUP_", "GO", "JAVA_", "SDKMAN_")
HARMLESS = frozenset({"PATH", "HOME", "HOSTNAME", "TERM", "LANG", "PWD", "SHLVL", "_", "container", "LC_CTYPE"})


@dataclass(frozen=True, slots=True)
class Mount:
    """`source` of the host as `target` inside."""

    source: Path
    target: str
    is_writable: bool = False

    def __str__(self) -> str:
        """As `--mount` reads it: comma-separated values, quoted as such."""
        fields = ["type=bind", f"source={self.source}", f"target={self.target}", *([] if self.is_writable else ["readonly"])]
        return ",".join(f'"{field.replace(chr(34), chr(34) * 2)}"' if set(field) & {",", '"'} else field for field in fields)


def mounts_of(policy: Policy, git: Protection, programs: Mapping[str, Path], proxy: Path | None) -> list[Mount]:
    """Parents before what lies in them."""
    may_write = policy.profile == "workspace-write"
    mounts = [Mount(path, str(path), may_write) for path in (*git.shared, policy.workspace)]
    mounts += [Mount(path, str(path)) for path in policy.readable]
    if may_write:
        mounts += [Mount(path, str(path), True) for path in (*policy.writable, *git.pinned)]
        mounts += [Mount(path, str(path)) for path in git.readonly]
    mounts += [Mount(Path("/dev/null"), str(path)) for path in git.sockets]
    mounts.append(Mount(PACKAGE, f"{INSIDE}/{PACKAGE.name}"))
    mounts += [Mount(path, f"{INSIDE}/bin/{name}") for name, path in programs.items()]
    if proxy is not None:
        mounts.append(Mount(proxy, PROXY))
    last = {mount.target: mount for mount in mounts}
    return sorted(last.values(), key=lambda mount: (mount.target.count("/"), mount.target))


def run_arguments(policy: Policy, engine: Engine, name: str, mounts: Sequence[Mount], *, rootless: bool) -> list[str]:
    """The command line after the program's name."""
    limits = policy.limits
    tmp = f"rw,exec,nosuid,nodev,size={limits.tmp_bytes},mode=1777"
    arguments = ["run", "--rm", "--interactive", "--pull", "never", "--name", name, "--hostname", "kcode", "--label", "kcode"]
    arguments += ["--network", "host" if policy.network == "on" else "none", "--read-only", "--cap-drop", "ALL"]
    arguments += ["--security-opt", "no-new-privileges", "--security-opt", "label=disable", "--shm-size", str(SHM_BYTES)]
    for folder in ("/tmp", "/var/tmp"):
        arguments += ["--tmpfs", f"{folder}:{tmp}"]
    arguments += ["--tmpfs", f"{HOME}:rw,exec,nosuid,nodev,size={HOME_BYTES},mode=1777"]
    if limits.processes is not None:
        arguments += ["--pids-limit", str(limits.processes)]
    if limits.memory_bytes is not None:
        arguments += ["--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes)]
    if engine == "podman":
        # Its own defaults may be above what this user may have.
        arguments += ["--read-only-tmpfs=false", *_own_bounds()]
        arguments += ["--userns", "keep-id"] if rootless else []
    if not (rootless and engine == "docker"):
        # With a Docker of this user's own, root inside is this user.
        arguments += ["--user", f"{os.getuid()}:{os.getgid()}"]
    for mount in mounts:
        arguments += ["--mount", str(mount)]
    code = worker_code(f"{INSIDE}/{PACKAGE.name}", MINIMUM_PYTHON)
    arguments += ["--workdir", str(policy.workspace), "--entrypoint", "python3", policy.image]
    return [*arguments, "-I", "-S", "-B", "-c", code]


def _own_bounds() -> list[str]:
    found: list[str] = []
    for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(kind)[1]
        wanted = MAX_BOUND if hard == resource.RLIM_INFINITY else min(hard, MAX_BOUND)
        found += ["--ulimit", f"{name}={wanted}:{wanted}"]
    return found


class ContainerBackend:
    """One backend serves one sandbox. `attachment` cannot be had: descriptors do not pass a daemon."""

    def __init__(self, engine: Engine, attachment: Attachment | None = None) -> None:
        if attachment is not None:
            raise SandboxUnavailableError(f"with {engine}, kcode runs no command of yours directly; use `{engine} run` itself")
        self._engine: Engine = engine
        self._git = Protection()
        self._guards: list[Guard] = []
        self._sweeping = threading.Lock()
        self._evidence: Evidence | None = None
        self._name = ""
        self._facts: Head = {}
        self.way_out: WayOut | None = None

    @property
    def protected(self) -> tuple[Path, ...]:
        """What is read-only in the workspace although the rest of it is not; known once launched."""
        return tuple(self._git.readonly)

    @property
    def linked(self) -> tuple[Path, ...]:
        """Those of `protected` that are read-only only for a hard link in them."""
        return tuple(self._git.linked)

    @property
    def landlock(self) -> int:
        """The version of the kernel's interface that the second fence uses; 0 without one."""
        return integer_of(self._facts, "landlock")

    def description(self, policy: Policy) -> str:
        return f"{self._engine} {policy.image} · {policy.profile} · network {policy.network_text}"

    async def launch(self, policy: Policy) -> Connection:
        home = home_of(policy)
        check_workspace(policy.workspace, home)
        program = shutil.which(self._engine)
        if program is None:
            raise SandboxUnavailableError(f"{self._engine} is not installed, or not on PATH")
        if not policy.image:
            raise SandboxUnavailableError(f"{self._engine} needs an image with Python: --sandbox-image NAME (sandbox_image)")
        image = await _image_environment(program, policy.image)
        rootless = await _is_rootless(program, self._engine)
        try:
            self._protect(policy)
            if policy.network == "allow-list":
                self.way_out = await open_way_out(Proxy(policy.hosts))
            return await self._launch(policy, program, image, home, rootless=rootless)
        except BaseException:
            self.tidy()
            raise

    def _protect(self, policy: Policy) -> None:
        if policy.profile != "workspace-write":
            self._git = Protection(sockets=sockets_below(policy.workspace))
            return
        folders = (policy.workspace, *policy.writable)
        self._git = protect_all(folders, (*policy.protect, *workspace_venvs(policy.workspace)))
        self._guards = [Guard(folder, frozenset(self._git.known)) for folder in folders]

    async def _launch(self, policy: Policy, program: str, image: Mapping[str, str], home: Path, *, rootless: bool) -> Connection:
        with ExitStack() as stack:
            canary, listener = set_canaries(stack)
            proxy = self.way_out.socket if self.way_out is not None else None
            mounts = mounts_of(policy, self._git, own_programs(), proxy)
            self._name = f"kcode-{os.getpid()}-{secrets.token_hex(6)}"
            argv = [program, *run_arguments(policy, self._engine, self._name, mounts, rootless=rootless)]
            connection = await start_process(argv, cli_environment(os.environ), "/")
            limits = policy.limits
            hello: Head = {
                "workspace": str(policy.workspace),
                "environment": inner_environment(policy, image),
                "private_home": True,
                "filter": filter_program(known_machine()).hex(),
                "fence": [str(path) for path in writable_folders(policy, self._git)],
                "proxy": PROXY if proxy is not None else "",
                "own_network": policy.network != "on",
                # Processes and memory are the container's group's business.
                "limits": {"file_bytes": limits.file_bytes, "open_files": limits.open_files},
                "check": {
                    "canary": str(canary),
                    "port": listener.getsockname()[1],
                    "protected": [str(path) for path in self._git.readonly],
                },
            }
            try:
                self._facts = facts = await greet(connection, hello, await private_git_configuration(home))
            except SandboxUnavailableError as error:
                raise SandboxUnavailableError(explain(str(error), self._engine, policy.image)) from error
        denials = self.way_out.proxy.record.denials if self.way_out is not None else ()
        covered = tuple(map(Path, self._git.sockets))
        self._evidence = Evidence(Places(policy, self.protected, covered, (), self.linked), denials, ())
        fault = common_fault(facts, policy) or _leaked(facts, image)
        if fault:
            connection.kill()
            await connection.close()
            raise SandboxUnavailableError(f"the self-check failed: {fault}; nothing was run")
        return connection

    def guard(self) -> list[str]:
        """Blocks for the time of a walk through the workspace."""
        with self._sweeping:
            found = [guard.workspace / name for guard in self._guards for name in guard.sweep()]
        if not self._guards:
            return []
        top = self._guards[0].workspace
        return [str(path.relative_to(top) if path.is_relative_to(top) else path) for path in found]

    def adapt(self, before: Policy, policy: Policy) -> bool:
        return False

    def evidence(self) -> Evidence | None:
        return self._evidence

    def tidy(self) -> None:
        name, self._name = self._name, ""
        program = shutil.which(self._engine)
        if name and program is not None:
            # Mostly gone with its worker; a daemon may be behind.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    [program, "rm", "--force", name],
                    env=cli_environment(os.environ),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=CLI_TIMEOUT_S,
                    check=False,
                )
        self.guard()
        self._git.release()
        if self.way_out is not None:
            self.way_out.close()
            self.way_out = None


def cli_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the program itself is started with."""
    return {name: text for name, text in environ.items() if name in CLI_VARIABLES or name.startswith(CLI_PREFIXES)}


def inner_environment(policy: Policy, image: Mapping[str, str]) -> dict[str, str]:
    """The image's variables, above them the policy's that mean something in it."""
    given = {name: text for name, text in policy.environment if not name.startswith(OF_THE_HOST)}
    path = f"{image.get('PATH', DEFAULTS['PATH'])}:{INSIDE}/bin"
    return DEFAULTS | dict(image) | given | {"HOME": HOME, "TMPDIR": "/tmp", "PATH": path}


async def _image_environment(program: str, image: str) -> dict[str, str]:
    code, text, errors = await _ask(program, "image", "inspect", "--format", "{{json .Config.Env}}", "--", image)
    if code != 0:
        name = Path(program).name
        said = errors.strip().splitlines()[-1:] or ["no reason given"]
        raise SandboxUnavailableError(f"{name} has no image {image!r}: {said[0][:300]}; get it with `{name} pull {image}`")
    try:
        names = json.loads(text) or []
    except ValueError as error:
        raise SandboxUnavailableError(f"{program} image inspect {image} said {text[:80]!r}") from error
    split = (entry.partition("=") for entry in names if isinstance(entry, str))
    return {name: text for name, _, text in split}


async def _is_rootless(program: str, engine: Engine) -> bool:
    if engine == "podman":
        return os.getuid() != 0
    code, text, errors = await _ask(program, "info", "--format", "{{json .SecurityOptions}}")
    if code != 0:
        said = errors.strip().splitlines()[-1:] or ["no reason given"]
        raise SandboxUnavailableError(f"docker does not answer: {said[0][:300]}; start its daemon, or name podman or bubblewrap")
    return "rootless" in text


async def _ask(program: str, *arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=cli_environment(os.environ),
        cwd="/",
    )
    try:
        async with asyncio.timeout(CLI_TIMEOUT_S):
            output, errors = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise SandboxUnavailableError(f"{program} {arguments[0]} did not answer within {CLI_TIMEOUT_S:.0f} s") from error
    return process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")


def _leaked(facts: Head, image: Mapping[str, str]) -> str:
    names = facts.get("environment_names")
    allowed = HARMLESS | set(image)
    leaked = sorted(set(names) & set(os.environ) - allowed) if isinstance(names, list) else ["nothing can be seen"]
    return f"variables of the host are visible: {leaked}" if leaked else ""


def explain(message: str, engine: Engine, image: str) -> str:
    """The program's own words with the remedy for the causes that are known."""
    lowered = message.lower()
    if "python3" in lowered and ("not found" in lowered or "no such file" in lowered):
        return f"the image {image} has no python3, which kcode's worker runs on: {message}"
    if "cannot connect" in lowered or "permission denied while trying to connect" in lowered:
        return f"{message} (is the daemon running, and may this user speak to it?)"
    return f"{engine}: {message}"
