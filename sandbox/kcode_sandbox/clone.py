"""A copy-on-write clone of a workspace: a sandbox over the same files whose writes stay in a private layer.

Inside, the workspace stands at its own absolute path. The layer lies in a folder of kcode's own that no sandbox sees; it becomes
part of the workspace by `merge` alone, which goes through the workspace's own sandbox and never over what changed meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from kcode_sandbox.bubblewrap import BubblewrapBackend
from kcode_sandbox.client import WorkerSandbox
from kcode_sandbox.clone_overlay import UpperLayer, overlay_layers, probe_overlay
from kcode_sandbox.clone_patch import Version, make_patch, merged
from kcode_sandbox.clone_record import Base, Record, take_record
from kcode_sandbox.clone_store import Place
from kcode_sandbox.detect import usable_binaries
from kcode_sandbox.errors import FileError, SandboxUnavailableError
from kcode_sandbox.guard import HELD_NAMES
from kcode_sandbox.layer import CopiedTree
from kcode_sandbox.policy import Policy
from kcode_sandbox.repositories import common_folder
from kcode_sandbox.sandbox import Sandbox, Standing
from kcode_sandbox.tree import Entry, content, look, rooted

MAX_FILE_BYTES = 64 << 20
MAX_TEXT_BYTES = 2 << 20
GIT_TIMEOUT_S = 60.0
DEBRIS = frozenset(
    {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".venv", "node_modules", ".tox", ".kcode"}
)
"""What runs leave behind; ignored even where the project's own .gitignore does not name it."""


@dataclass(frozen=True, slots=True)
class Change:
    """A file or link that the clone has otherwise than its base, by its path relative to the workspace.

    `left_out` says why neither patch nor merge carries it, "" when they do. `moved`: the workspace's own has changed since the
    clone was opened, so that `old` is not what the clone started from unless that was kept.
    """

    path: str
    kind: Literal["added", "modified", "deleted"]
    old: Entry | None
    new: Entry | None
    moved: bool = False
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Merge:
    """`applied` were brought over or were so already; `conflicts` and `left_out` were left as they are in the workspace."""

    applied: tuple[str, ...]
    conflicts: tuple[Conflict, ...]
    left_out: tuple[Conflict, ...] = ()


class Source(Protocol):
    """Where a clone's own version of the files lies on the host, and what of it may differ."""

    @property
    def root(self) -> Path: ...

    def touched(self, base: int) -> Iterator[str]: ...


class Clone:
    """`sandbox` is not started: whoever opened the clone starts it, `discard` ends it. One user at a time."""

    def __init__(self, sandbox: Sandbox, original: Path, place: Place, source: Source, record: Record, method: str) -> None:
        self.sandbox = sandbox
        self.method = method
        """How it was made, in words: "overlay", or "copy" with the reason why not an overlay."""
        self._original = original
        self._place = place
        self._source = source
        self._record = record
        self._kept: dict[str, bytes] = {}

    @property
    def workspace(self) -> Path:
        """As it is called inside."""
        return self.sandbox.policy.workspace

    async def changes(self) -> tuple[Change, ...]:
        """By path. What git ignores is not among them, nor anything inside `.git`: commits stay in the clone."""
        found = await asyncio.to_thread(lambda: sorted(self._compare(), key=lambda change: change.path))
        ignored = await self._ignored(found)
        return tuple(change for change in found if change.path not in ignored)

    async def patch(self, changes: Iterable[Change] | None = None) -> bytes:
        """A binary git patch from the base to the clone. Where the base `moved`, it is against the workspace's present file."""
        wanted = await self.changes() if changes is None else changes
        return await asyncio.to_thread(self._patch, [change for change in wanted if not change.left_out])

    async def merge(self, into: Sandbox, siblings: Iterable[Clone] = ()) -> Merge:
        """Bring every change into the workspace of `into` where that still has the base's version, or the same change already.

        Texts that changed on both sides are merged where the lines are apart and the base is known; everything else is a
        conflict and stays as it is. `siblings` are other clones of the same workspace: they keep what is replaced under them.
        """
        applied: list[str] = []
        conflicts: list[Conflict] = []
        changes = await self.changes()
        carried = [change for change in changes if not change.left_out]
        # Deletions first: a folder may become a file and the other way round.
        for change in sorted(carried, key=lambda change: (change.kind != "deleted", change.path)):
            for sibling in siblings:
                await asyncio.to_thread(sibling.keep, change.path)
            reason = await self._bring(change, into)
            if reason:
                conflicts.append(Conflict(change.path, reason))
            else:
                applied.append(change.path)
        left_out = tuple(Conflict(change.path, change.left_out) for change in changes if change.left_out)
        return Merge(tuple(sorted(applied)), tuple(conflicts), left_out)

    def keep(self, path: str) -> None:
        """Remember the base's text before another clone's change replaces it. Blocks."""
        if path in self._kept:
            return
        with rooted(self._original) as root:
            base = self._record.base(root, path)
            if not base.moved and base.entry is not None and base.entry.kind == "file" and base.entry.size <= MAX_TEXT_BYTES:
                self._kept[path] = content(root, path, MAX_TEXT_BYTES)

    async def discard(self) -> None:
        """End what runs in it and drop the layer; the files themselves are deleted in the background. Idempotent."""
        await self.sandbox.close()
        await asyncio.to_thread(self._place.drop)

    # What follows runs in a worker thread.

    def _compare(self) -> Iterator[Change]:
        with rooted(self._original) as below, rooted(self._source.root) as above:
            for path in dict.fromkeys(self._source.touched(below)):
                base, new = self._record.base(below, path), look(above, path)
                change = _change(path, base, new)
                if change is not None:
                    yield change

    def _patch(self, changes: Iterable[Change]) -> bytes:
        old: dict[bytes, Version] = {}
        new: dict[bytes, Version] = {}
        with rooted(self._original) as below, rooted(self._source.root) as above:
            for change in changes:
                name = os.fsencode(change.path)
                if change.old is not None:
                    kept = self._kept.get(change.path)
                    old[name] = _version(change.old, content(below, change.path, MAX_FILE_BYTES) if kept is None else kept)
                if change.new is not None:
                    new[name] = _version(change.new, content(above, change.path, MAX_FILE_BYTES))
        return make_patch(old, new)

    def _text(self, path: str) -> bytes:
        with rooted(self._source.root) as above:
            return content(above, path, MAX_FILE_BYTES)

    async def _bring(self, change: Change, into: Sandbox) -> str:
        """Why the change could not be brought over, "" when it was."""
        data = await asyncio.to_thread(self._text, change.path) if change.new is not None else b""
        wanted = _standing(change.new)
        # Nothing is ever what "other" with a hash says: only the same change made already passes.
        expected = Standing("other", sha256="moved") if change.moved else _standing(change.old)
        try:
            await into.place(change.path, data, wanted, expected)
        except FileError as error:
            if error.code != "STALE":
                return str(error)
            return await self._bring_text(change, data, into, str(error))
        return ""

    async def _bring_text(self, change: Change, data: bytes, into: Sandbox, reason: str) -> str:
        base, new = self._kept.get(change.path), change.new
        if base is None or new is None or new.kind != "file" or into.policy.workspace != self._original:
            return reason
        with rooted(self._original) as root:
            present = look(root, change.path)
            if present is None or present.kind != "file" or present.size > MAX_TEXT_BYTES or new.size > MAX_TEXT_BYTES:
                return reason
            theirs = content(root, change.path, MAX_TEXT_BYTES)
        text = await asyncio.to_thread(merged, base, theirs, data)
        if text is None:
            return f"{reason}, in the same lines"
        try:
            await into.place(change.path, text, standing_of(text, executable=new.executable), _standing(present))
        except FileError as error:
            return str(error)
        return ""

    async def _ignored(self, changes: list[Change]) -> set[str]:
        """Of the changed paths those that git, asked inside, ignores; without a repository only what runs leave behind."""
        debris = {change.path for change in changes if _is_debris(change.path)}
        solid = {change.path for change in changes if change.new is not None}
        asked = [change.path for change in changes if not any(parent in solid for parent in _parents(change.path))]
        names = b"".join(os.fsencode(path) + b"\0" for path in asked)
        if not names:
            return debris
        command = ["git", "-c", "core.fsmonitor=false", "check-ignore", "-z", "--stdin"]
        result = await self.sandbox.exec(command, timeout_s=GIT_TIMEOUT_S, stdin=names, max_output=len(names) + 4096)
        if result.exit_code != 0:
            return debris
        return debris | {os.fsdecode(name) for name in result.output.split(b"\0")}


async def open_clone(policy: Policy, folder: Path) -> Clone:
    """A clone of the policy's workspace that keeps what is written in it in `folder`, a private one of kcode's own.

    The policy's further writable folders are read-only in it: they are not cloned. Raises SandboxUnavailableError.
    """
    if policy.backend not in ("auto", "bubblewrap"):
        raise SandboxUnavailableError(f"copies of a workspace need bubblewrap's overlay; {policy.backend} has none")
    if policy.profile != "workspace-write":
        raise SandboxUnavailableError(
            f"a copy of a workspace is written in behind walls, which {policy.profile} is not for; choose "
            "--sandbox workspace-write (with --network on where commands need it)"
        )
    policy = replace(policy, readable=(*policy.readable, *policy.writable), writable=())
    place = await asyncio.to_thread(Place, folder)
    try:
        binaries = [candidate.path for candidate in usable_binaries()]
        record, probe = await asyncio.gather(
            asyncio.to_thread(take_record, policy.workspace, place.opened_ns),
            asyncio.to_thread(probe_overlay, binaries, policy.workspace, place),
        )
        if probe.binary is None:
            raise SandboxUnavailableError(f"no overlay can be mounted: {probe.fault}")
        common = common_folder(policy.workspace)
        shared = () if common is None else (common,)
        layers = overlay_layers(policy.workspace, shared, place)
        copied = CopiedTree(layers, shared, record.sockets)
        sandbox = WorkerSandbox(policy, BubblewrapBackend([probe.binary], copied=copied))
        return Clone(sandbox, policy.workspace, place, UpperLayer(place.path / "upper"), record, "overlay")
    except BaseException:
        place.drop()
        raise


def _change(path: str, base: Base, new: Entry | None) -> Change | None:
    """None when nothing differs that git would keep."""
    old = base.entry if base.entry is not None and base.entry.kind in {"file", "link"} else None
    if new is not None and new.kind == "folder":
        new = None
    if (old is None and new is None) or (old is not None and new is not None and old.holds_the_same_as(new)):
        return None
    left_out = ""
    if new is not None and new.kind == "other":
        left_out = "it is neither a file nor a link"
    elif new is not None and new.size > MAX_FILE_BYTES:
        left_out = f"it has {new.size} bytes, at most {MAX_FILE_BYTES} are carried over"
    elif old is not None and old.size > MAX_FILE_BYTES and new is not None:
        left_out = f"it had {old.size} bytes, at most {MAX_FILE_BYTES} are compared"
    elif set(HELD_NAMES) & set(path.split("/")):
        left_out = "it would run or steer programs outside; copy it yourself if it is wanted"
    kind = "added" if old is None else "deleted" if new is None else "modified"
    return Change(path, kind, old, new, base.moved, left_out)


def _version(entry: Entry, data: bytes) -> Version:
    return Version(data, entry.kind == "link", entry.executable)


def _standing(entry: Entry | None) -> Standing:
    return Standing("absent") if entry is None else Standing(entry.kind, entry.executable, entry.sha256)


def standing_of(text: bytes, *, executable: bool) -> Standing:
    return Standing("file", executable, hashlib.sha256(text).hexdigest())


def _is_debris(path: str) -> bool:
    return bool(DEBRIS & set(path.split("/"))) or path.endswith((".pyc", ".pyo"))


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path
