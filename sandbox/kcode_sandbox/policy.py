"""What a sandbox allows: one frozen object that can be printed, logged and compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kcode_sandbox.hosts import HostRule, parse_rules

Profile = Literal["read-only", "workspace-write", "danger-full-access"]
Network = Literal["off", "allow-list", "on"]
Choice = Literal["auto", "bubblewrap", "landlock", "docker", "podman", "seatbelt"]
"""What holds the policy: auto is bubblewrap and never anything else; landlock is weaker. The others must be named.

seatbelt can be explained, and nothing runs under it yet."""


def parse_network(text: str) -> tuple[Network, tuple[HostRule, ...]]:
    """`off`, `on`, or the hosts of an allow-list, see hosts.parse_rules. ValueError names what is none of them."""
    if text == "off":
        return "off", ()
    if text == "on":
        return "on", ()
    try:
        return "allow-list", parse_rules(text)
    except ValueError as error:
        raise ValueError(f"network {text!r} is neither off nor on nor a list of hosts: {error}") from error


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
    hosts: tuple[HostRule, ...] = ()
    """What an allow-list allows; nothing when it is empty."""
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    protect: tuple[Path, ...] = ()
    """Real paths that are never writable, also where they lie in what is: the program's own code, environment and state."""
    environment: tuple[tuple[str, str], ...] = ()
    limits: Limits = field(default_factory=Limits)
    backend: Choice = "auto"
    image: str = ""
    """What a container of docker or podman is made of."""

    @property
    def network_text(self) -> str:
        """off, on, or the hosts."""
        return ", ".join(map(str, self.hosts)) if self.network == "allow-list" else self.network
