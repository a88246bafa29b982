"""A control group for one session, where this user may make one: bounds processes and memory of all together.

It counts what rlimits cannot: RLIMIT_NPROC does not bind root, RLIMIT_AS binds each process by itself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
REMOVE_TIMEOUT_S = 2.0
# Joins the groups itself and then becomes the program, so that not even its first child is outside.
JOIN = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 125; shift; done; shift; exec "$@"'


@dataclass(frozen=True, slots=True)
class Group:
    """`folders` are ours to remove. Empty where control groups are not at hand."""

    folders: tuple[Path, ...] = ()
    bounds_memory: bool = False

    def wrap(self, argv: list[str]) -> list[str]:
        if not self.folders:
            return argv
        files = [str(folder / "cgroup.procs") for folder in self.folders]
        return ["/bin/sh", "-c", JOIN, "kcode-join", *files, "--", *argv]

    def remove(self) -> None:
        """Once everything inside is dead. The kernel may need a moment to notice that it is empty."""
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
        for folder in self.folders:
            while folder.exists() and time.monotonic() < deadline:
                try:
                    folder.rmdir()
                except OSError:
                    time.sleep(0.005)


def make_group(processes: int | None, memory_bytes: int | None) -> Group:
    own = _own_groups()
    name = f"kcode-{os.getpid()}-{secrets.token_hex(4)}"
    limits = {"pids": ("pids.max", processes), "memory": ("memory.max", memory_bytes)}
    if "" in own and "pids" not in own:
        return _make(own[""].parent / name, list(limits.values()))
    old_names = {"pids": limits["pids"], "memory": ("memory.limit_in_bytes", memory_bytes)}
    groups = [_make(own[kind] / name, [old_names[kind]]) for kind in old_names if kind in own]
    return Group(tuple(folder for group in groups for folder in group.folders), any(group.bounds_memory for group in groups))


def _own_groups() -> dict[str, Path]:
    """Our group's folder by controller; "" is the unified hierarchy."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, Path] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = ROOT / controller / path.lstrip("/")
    return found


def _make(folder: Path, limits: list[tuple[str, int | None]]) -> Group:
    """Empty where we may not make it or a wanted bound cannot be set."""
    wanted = [(name, value) for name, value in limits if value is not None]
    if not wanted or not os.access(folder.parent, os.W_OK) or not os.access(folder.parent / "cgroup.procs", os.W_OK):
        return Group()
    _sweep(folder.parent)
    try:
        folder.mkdir()
    except OSError:
        return Group()
    try:
        for name, value in wanted:
            (folder / name).write_text(str(value))
    except OSError:
        folder.rmdir()
        return Group()
    return Group((folder,), any(name.startswith("memory") for name, _ in wanted))


def _sweep(parent: Path) -> None:
    """Remove what sessions that were killed left behind. A group in use is not empty and stays."""
    for old in parent.glob("kcode-*-*"):
        if not Path("/proc", old.name.split("-")[1]).exists():
            with contextlib.suppress(OSError):
                old.rmdir()
