"""Clones by overlay: the workspace below, a private layer above, mounted by bubblewrap without any privilege."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kcode_sandbox.clone_layer import touched
from kcode_sandbox.clone_store import Place
from kcode_sandbox.layer import Layer
from kcode_sandbox.tree import rooted

PROBE_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class UpperLayer:
    root: Path

    def touched(self, base: int) -> Iterator[str]:
        with rooted(self.root) as upper:
            yield from touched(upper, base)


@dataclass(frozen=True, slots=True)
class Probe:
    """`binary` mounts overlays over this workspace in this store; None with the reason in `fault`."""

    binary: Path | None
    fault: str


Known = dict[tuple[Path, int, int], str]
PROBED: Known = {}
"""Faults by binary and file systems: a mount that works once works again."""


def probe_overlay(binaries: Sequence[Path], workspace: Path, place: Place, known: Known = PROBED) -> Probe:
    """Really mounts one, once per file system and process."""
    if place.path.is_relative_to(workspace):
        return Probe(None, f"{place.path.parent} lies in the workspace itself")
    faults: list[str] = []
    for binary in binaries:
        key = (binary, workspace.stat().st_dev, place.path.stat().st_dev)
        fault = known[key] if key in known else _try(binary, workspace, place.path)
        known[key] = fault
        if not fault:
            return Probe(binary, "")
        faults.append(f"{binary}: {fault}")
    return Probe(None, "; ".join(faults) or "no bwrap was found")


def _try(binary: Path, workspace: Path, place: Path) -> str:
    upper, work = place / "probe-upper", place / "probe-work"
    upper.mkdir()
    work.mkdir()
    over = ["--overlay-src", str(workspace), "--overlay", str(upper), str(work), str(workspace)]
    program = next((path for path in ("/usr/bin/true", "/bin/true") if os.path.exists(path)), "true")
    try:
        done = subprocess.run(
            [binary, "--unshare-user", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", *over, "--", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin"},
            cwd="/",
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it does not run: {error}"
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines()
    return said[-1][:200] if said else f"exit code {done.returncode}"


def overlay_layers(workspace: Path, shared: Sequence[Path], place: Place) -> tuple[Layer, ...]:
    """The workspace's layer first; a linked worktree's common git folder gets one of its own."""
    layers = [Layer(workspace, place.make("upper"), place.make("work"))]
    for number, path in enumerate(shared):
        layers.append(Layer(path, place.make(f"upper-{number}"), place.make(f"work-{number}")))
    return tuple(layers)
