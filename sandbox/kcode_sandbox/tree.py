"""A tree that a sandbox controls, read on the host: every folder is opened from its parent and no link is followed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Kind = Literal["file", "link", "folder", "other"]
CHUNK_BYTES = 1 << 20
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands at a path. `sha256` is of a file's content or of a link's target, "" for the rest."""

    kind: Kind
    size: int
    executable: bool
    sha256: str
    inode: int
    ctime_ns: int

    def holds_the_same_as(self, other: Entry) -> bool:
        return (self.kind, self.executable, self.sha256) == (other.kind, other.executable, other.sha256)


@contextmanager
def opened(root: int, place: str) -> Generator[int]:
    """The folder `place` below the open folder `root`. OSError when it is absent or a link is on the way."""
    fd = os.dup(root)
    try:
        for part in place.split("/") if place else ():
            inner = os.open(part, FOLDER_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


@contextmanager
def rooted(path: Path) -> Generator[int]:
    fd = os.open(path, FOLDER_FLAGS)
    try:
        yield fd
    finally:
        os.close(fd)


def kind_of(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISLNK(mode):
        return "link"
    return "folder" if stat.S_ISDIR(mode) else "other"


def is_whiteout(found: os.stat_result) -> bool:
    """What an overlay leaves in its upper layer for a name that was deleted."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def look(root: int, path: str, *, hashed: bool = True) -> Entry | None:
    """The entry at `path`, None when there is none, or a whiteout. Without `hashed` the hash is ""."""
    folder, _, name = path.rpartition("/")
    try:
        with opened(root, folder) as fd:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if is_whiteout(found):
                return None
            kind = kind_of(found.st_mode)
            executable = kind == "file" and bool(found.st_mode & 0o100)
            entry = Entry(kind, found.st_size, executable, "", found.st_ino, found.st_ctime_ns)
            return replace(entry, sha256=_hash(fd, name, kind)) if hashed else entry
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == 40:  # ELOOP: a link where a folder was expected
            return None
        raise


def _hash(folder: int, name: str, kind: Kind) -> str:
    if kind == "link":
        return hashlib.sha256(os.fsencode(os.readlink(name, dir_fd=folder))).hexdigest()
    if kind != "file":
        return ""
    with open(_open_file(folder, name), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_file(folder: int, name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)


def content(root: int, path: str, max_bytes: int) -> bytes:
    """A file's bytes, at most `max_bytes`, or a link's target."""
    folder, _, name = path.rpartition("/")
    with opened(root, folder) as fd:
        if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            return os.fsencode(os.readlink(name, dir_fd=fd))
        with open(_open_file(fd, name), "rb") as file:
            return file.read(max_bytes)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of a folder; `is_special` is neither file nor link nor folder."""

    path: str
    name: str
    is_folder: bool
    is_special: bool


def scan(root: int, place: str) -> list[Found]:
    """The entries of a folder; none when it cannot be opened."""
    start = f"{place}/" if place else ""
    found: list[Found] = []
    try:
        with opened(root, place) as fd, os.scandir(fd) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                is_special = not is_folder and not entry.is_file(follow_symlinks=False) and not entry.is_symlink()
                found.append(Found(start + entry.name, entry.name, is_folder, is_special))
    except OSError:
        return []
    return found


def leaves(root: int, place: str, skipped: frozenset[str]) -> Iterator[str]:
    """Every file and link below `place`, or `place` itself when it is one; folders named in `skipped` are passed by."""
    found = look(root, place, hashed=False)
    if found is None:
        return
    if found.kind != "folder":
        yield place
        return
    pending = [place]
    while pending:
        for entry in scan(root, pending.pop()):
            if entry.name in skipped:
                continue
            if entry.is_folder:
                pending.append(entry.path)
            else:
                yield entry.path
