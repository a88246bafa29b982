"""What a sandbox allows: one frozen object that can be printed, logged and compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Profile = Literal["read-only", "workspace-write", "danger-full-access"]
Network = Literal["off", "on"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one session; None leaves the host's bound."""

    processes: int | None = 512
    memory_bytes: int | None = None
    file_bytes: int | None = 2 << 30
    open_files: int | None = 4096
    tmp_bytes: int = 512 << 20
    output_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Policy:
    """`workspace` is an existing absolute folder without symlinks in its path.

    `readable` and `writable` are extra folders named by the user, never by the model. `environment` is the whole
    environment of every process inside (nothing is inherited).
    """

    workspace: Path
    profile: Profile = "workspace-write"
    network: Network = "off"
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    limits: Limits = field(default_factory=Limits)
