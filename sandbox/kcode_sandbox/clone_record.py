"""What a workspace was when a clone of it was opened: enough to tell later what has changed underneath."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kcode_sandbox.tree import Entry, look, opened, rooted

# Full of files that nobody edits; of what is in them only the time of change tells.
UNRECORDED = frozenset({".git", "node_modules", ".venv", "venv", "__pycache__", ".tox", "target"})
MAX_FOLDERS = 100_000


@dataclass(frozen=True, slots=True)
class Base:
    """`entry` is what stands there now. `moved`: it is not what stood there when the clone was opened."""

    entry: Entry | None
    moved: bool


@dataclass(frozen=True, slots=True)
class Record:
    """Names and inodes, from one walk that asks the file system for nothing else. `opened_ns` is in its own clock."""

    inodes: Mapping[str, int]
    sockets: tuple[Path, ...]
    opened_ns: int
    complete: bool

    def base(self, root: int, path: str) -> Base:
        """`root` is the workspace as it is now."""
        now = look(root, path)
        known = self.inodes.get(path)
        recorded = self.complete and not UNRECORDED & set(path.split("/"))
        if now is None or now.kind == "folder":
            return Base(None, moved=known is not None)
        if recorded and known is None:
            return Base(now, moved=True)
        # A rename over the file brings another inode; a write, or a change of mode, another time that nobody can set.
        return Base(now, moved=now.ctime_ns > self.opened_ns or known not in {None, now.inode})


def take_record(workspace: Path, opened_ns: int) -> Record:
    """Blocks for the time of a walk: less than a tenth of a second for fifty thousand files."""
    inodes: dict[str, int] = {}
    special: list[str] = []
    folders = 1
    with rooted(workspace) as root:
        pending = _walk(root, "", inodes, special)
        while pending and folders < MAX_FOLDERS:
            place = pending.pop()
            folders += 1
            with suppress(OSError), opened(root, place) as fd:
                pending += _walk(fd, f"{place}/", inodes, special)
        sockets = tuple(workspace / path for path in special if _is_socket(root, path))
    return Record(inodes, sockets, opened_ns, complete=not pending)


def _walk(folder: int, start: str, inodes: dict[str, int], special: list[str]) -> list[str]:
    """Note what is no folder, every path with `start` before it; the folders to go on with. Every copy waits for this."""
    inner: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if entry.is_dir(follow_symlinks=False):
                if name not in UNRECORDED:
                    inner.append(start + name)
                continue
            inodes[start + name] = entry.inode()
            if not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
                special.append(start + name)
    return inner


def _is_socket(root: int, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    try:
        with opened(root, folder) as fd:
            return stat.S_ISSOCK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except OSError:
        return False
