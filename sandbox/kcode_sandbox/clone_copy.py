"""A copy of a folder that stands at the workspace's place in a sandbox, where the workspace itself is not to be seen.

So programs that know the workspace by its path find it, and what the workspace holds besides the copied files (credentials in
its `.git`, what is not committed) does not exist inside.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kcode_sandbox.bubblewrap import BubblewrapBackend
from kcode_sandbox.client import WorkerSandbox
from kcode_sandbox.clone import Clone
from kcode_sandbox.clone_layer import SKIPPED
from kcode_sandbox.clone_record import Record
from kcode_sandbox.clone_store import Place
from kcode_sandbox.detect import usable_binaries
from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.layer import CopiedTree, Layer
from kcode_sandbox.policy import Policy
from kcode_sandbox.tree import leaves, rooted, scan

NEVER_NS = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class CopiedFiles:
    """The copy as a clone's source: every file of both sides may differ."""

    root: Path

    def touched(self, base: int) -> Iterator[str]:
        with rooted(self.root) as copy:
            for folder in (base, copy):
                for found in scan(folder, ""):
                    if found.name not in SKIPPED:
                        yield from leaves(folder, found.path, SKIPPED)


async def open_copy(policy: Policy, root: Path, base: Path, folder: Path, kept: Sequence[Path] = ()) -> Clone:
    """A clone of `base`, which nobody changes meanwhile, that stands at `root`: the policy's workspace or a folder above it.

    All of it can be written, since programs keep things at a repository's top; the clone's changes are those of the workspace
    alone, with paths relative to it.
    The copy lies in `folder`, a private one of the caller's. `kept` are folders below the real `root` that are shown, read-only,
    at their own places: `base` has nothing there. The policy must be workspace-write. Raises SandboxUnavailableError.
    """
    if policy.backend not in ("auto", "bubblewrap") or policy.profile != "workspace-write":
        raise SandboxUnavailableError(f"copies at the workspace's place need bubblewrap, not {policy.backend} {policy.profile}")
    policy = replace(policy, readable=(*policy.readable, *policy.writable), writable=())
    below = policy.workspace.relative_to(root)
    place = await asyncio.to_thread(Place, folder)
    try:
        copy = place.path / "tree"
        await asyncio.to_thread(shutil.copytree, base, copy, symlinks=True)
        layers = [Layer(root, source=copy, is_writable=True)]
        above = () if policy.workspace == root else (root,)
        for path in kept:
            # bubblewrap must never have to make it: what is inside may have put a link in the way.
            (copy / path.relative_to(root)).mkdir()
            layers.append(Layer(path, source=path))
        binaries = [candidate.path for candidate in usable_binaries()]
        sandbox = WorkerSandbox(policy, BubblewrapBackend(binaries, copied=CopiedTree(tuple(layers), above)))
        # Nothing else changes the base, so that there is nothing to recognise a change of it by.
        record = Record({}, (), NEVER_NS, complete=False)
        return Clone(sandbox, base / below, place, CopiedFiles(copy / below), record, "copy")
    except BaseException:
        place.drop()
        raise
