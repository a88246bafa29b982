"""Keeps the blocks on disk within their budget: what was used least recently goes, but never before what builds upon it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kcode_backend.kv.blockfile import TEMPORARY, parse_name

STALE_S = 60.0
"""An unfinished file that is older was left by a process that is dead: a block is written in milliseconds."""
KEPT_SHARE = 0.95
"""Of the budget that stays after an eviction, so that the next one is not due at once."""
FREE_BYTES = 1 << 30
"""The tier shrinks below its budget to leave so much of the disk to others."""
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Swept:
    """`kept_bytes` are in the folder, of all models together; `allowed_bytes` may be: the budget, or less on a full disk."""

    kept_bytes: int
    allowed_bytes: int


@dataclass(slots=True)
class _File:
    path: Path
    parent: bytes
    size: int
    used_ns: int


def sweep(root: Path, budget_bytes: int) -> Swept | None:
    """Remove files until all below `root` fits in the budget; None when another process is at it.

    A block counts as used when it or a block after it was: modification times are set on use. Raises OSError.
    """
    with _locked(root) as mine:
        if not mine:
            return None
        order: list[_File] = []
        for folder in _folders(root):
            order += _files(folder)
        total = sum(file.size for file in order)
        allowed = min(budget_bytes, total + _free_bytes(root) - FREE_BYTES)
        if total <= allowed:
            return Swept(total, allowed)
        for file in reversed(_by_worth(order)):
            if total <= KEPT_SHARE * allowed:
                break
            file.path.unlink(missing_ok=True)
            total -= file.size
        return Swept(total, allowed)


def _by_worth(files: list[_File]) -> list[_File]:
    """The most recently used first, each after the blocks it builds upon."""
    by_chain = {file.path: file for file in files}
    parents = {(file.path.parent, name.chain): file for file in files if (name := parse_name(file.path.name))}
    order: list[_File] = []
    for file in sorted(files, key=lambda item: item.used_ns, reverse=True):
        line: list[_File] = []
        at: _File | None = file
        while at is not None and at.path in by_chain:
            del by_chain[at.path]
            line.append(at)
            at = parents.get((at.path.parent, at.parent))
        order += reversed(line)
    return order


def _files(folder: Path) -> Iterator[_File]:
    """The blocks of one folder; abandoned unfinished files are removed."""
    now = time.time()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = parse_name(entry.name)
            if name is None and not entry.name.startswith(TEMPORARY):
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if name is not None:
                yield _File(Path(entry.path), name.parent, found.st_size, found.st_mtime_ns)
            elif now - found.st_mtime > STALE_S:
                Path(entry.path).unlink(missing_ok=True)


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _free_bytes(root: Path) -> int:
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


@contextmanager
def _locked(root: Path) -> Generator[bool]:
    """Whether this process alone sweeps."""
    descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
