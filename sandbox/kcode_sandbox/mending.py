"""Where no mount can make a part of the workspace read-only: it is remembered at the start, and put back after each command.

What a command made of it is renamed as guard.py renames things. This runs outside, over a tree that commands control: every
folder is opened from its parent without following links, files are read bounded.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kcode_sandbox.guard import hold

MAX_KEPT_BYTES = 32 << 20
MAX_ENTRIES = 200_000
WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Kept:
    """One file, folder or link. `data` is a file's content or a link's target; None for a folder."""

    mode: int
    data: bytes | None


Tree = Mapping[str, Kept]
"""By the path below the thing that is kept, which itself is ""."""


class TooLarge(Exception):
    """More than may be kept."""


@dataclass(slots=True)
class Mending:
    """`kept` are put back as they were, absent ones are held when they appear. All paths are absolute and without links.

    `watched` are virtual environments: too large to be kept, so one that was changed is renamed as a whole.
    """

    kept: dict[Path, Tree] = field(default_factory=dict)
    absent: list[Path] = field(default_factory=list)
    watched: dict[Path, tuple[str, str]] = field(default_factory=dict)

    def remember(self, paths: Iterable[Path], absent: Iterable[Path], environments: Iterable[Path]) -> None:
        """Raises TooLarge naming what cannot be kept."""
        for path in paths:
            with opened(path.parent) as parent:
                self.kept[path] = _taken(parent, path)
        self.absent = [path for path in absent if not os.path.lexists(path)]
        for path in environments:
            with opened(path.parent) as parent:
                self.watched[path] = _state(parent, path.name, whole=False), _state(parent, path.name, whole=True)

    def mend(self, *, whole: bool = False) -> list[Path]:
        """What was put back or taken away. `whole`: look at every file of the environments, not only at what starts with them."""
        changed: list[Path] = []
        for path, tree in self.kept.items():
            with suppress(OSError), self._reached(path, changed) as parent:
                if not _is_as_kept(parent, path, tree):
                    if not _exists(parent, path.name) or hold(parent, path.name):
                        _put_back(parent, path.name, tree)
                    changed.append(path)
        for path in self.absent:
            with suppress(OSError), self._reached(path, changed) as parent:
                if _exists(parent, path.name) and hold(parent, path.name):
                    changed.append(path)
        for path, state in self.watched.items():
            with suppress(OSError), opened(path.parent) as parent:
                if (
                    _exists(parent, path.name)
                    and _state(parent, path.name, whole=whole) != state[whole]
                    and hold(parent, path.name)
                ):
                    changed.append(path)
        return list(dict.fromkeys(changed))

    @contextmanager
    def _reached(self, path: Path, changed: list[Path]) -> Generator[int]:
        """The folder of `path`; what stands in the way of it as a link is held, and then there is none."""
        try:
            with opened(path.parent) as parent:
                yield parent
        except NotADirectoryError:
            for above in list(reversed(path.parents))[1:]:
                with opened(above.parent) as folder:
                    if not stat.S_ISDIR(os.lstat(above.name, dir_fd=folder).st_mode) and hold(folder, above.name):
                        changed.append(above)
            raise


@contextmanager
def opened(path: Path) -> Generator[int]:
    """A folder, no link followed on the way to it."""
    fd = os.open("/", WALK)
    try:
        for part in path.parts[1:]:
            inner = os.open(part, WALK, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _taken(parent: int, path: Path) -> dict[str, Kept]:
    found: dict[str, Kept] = {}
    size = 0
    for name, kept in _walked(parent, path.name, ""):
        found[name] = kept
        size += len(kept.data or b"") + len(name)
        if size > MAX_KEPT_BYTES or len(found) > MAX_ENTRIES:
            raise TooLarge(f"{path} is larger than {MAX_KEPT_BYTES >> 20} MiB")
    return found


def _walked(parent: int, name: str, place: str) -> Iterator[tuple[str, Kept]]:
    status = os.lstat(name, dir_fd=parent)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        yield place, Kept(stat.S_IFLNK, os.fsencode(os.readlink(name, dir_fd=parent)))
    elif stat.S_ISREG(status.st_mode):
        yield place, Kept(stat.S_IFREG | mode, _content(parent, name))
    elif stat.S_ISDIR(status.st_mode):
        yield place, Kept(stat.S_IFDIR | mode, None)
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for inner in sorted(os.listdir(folder)):
                yield from _walked(folder, inner, os.path.join(place, inner))
        finally:
            os.close(folder)
    else:
        yield place, Kept(stat.S_IFMT(status.st_mode), b"")


def _content(parent: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_KEPT_BYTES + 1)
    if len(data) > MAX_KEPT_BYTES:
        raise TooLarge(f"{name} is larger than {MAX_KEPT_BYTES >> 20} MiB")
    return data


def _is_as_kept(parent: int, path: Path, tree: Tree) -> bool:
    try:
        return _taken(parent, path) == tree
    except (OSError, TooLarge):
        return False


def _put_back(parent: int, name: str, tree: Tree) -> None:
    """`name` does not exist there, or nothing is done."""
    top = tree[""]
    if top.data is None:
        os.mkdir(name, 0o700, dir_fd=parent)
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for inner in sorted(path for path in tree if path and "/" not in path):
                below = {
                    path[len(inner) + 1 :]: kept for path, kept in tree.items() if path == inner or path.startswith(f"{inner}/")
                }
                _put_back(folder, inner, below)
            os.fchmod(folder, stat.S_IMODE(top.mode))
        finally:
            os.close(folder)
    elif stat.S_ISLNK(top.mode):
        os.symlink(os.fsdecode(top.data), name, dir_fd=parent)
    elif stat.S_ISREG(top.mode):
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        with os.fdopen(fd, "wb") as file:
            file.write(top.data)
            os.fchmod(file.fileno(), stat.S_IMODE(top.mode))


def _state(parent: int, name: str, *, whole: bool) -> str:
    """Changes with any file of a virtual environment, or only with those that its start reads and with the names of its packages.

    The time of change cannot be set by whoever owns a file, so content is not read.
    """
    lines: list[str] = []
    _describe(parent, name, "", lines, whole=whole)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _describe(parent: int, name: str, place: str, lines: list[str], *, whole: bool) -> None:
    status = os.lstat(name, dir_fd=parent)
    lines.append(f"{place} {status.st_mode} {status.st_ino} {status.st_size} {status.st_ctime_ns}")
    if not stat.S_ISDIR(status.st_mode) or not (whole or _starts(place)):
        return
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for inner in sorted(os.listdir(folder)):
            _describe(folder, inner, os.path.join(place, inner), lines, whole=whole)
    finally:
        os.close(folder)


def _starts(place: str) -> bool:
    parts = place.split("/")
    if parts[0] in {"lib", "lib64"}:
        return len(parts) < 3 or parts[2:] == ["site-packages"]
    return place in {"", "bin", "Scripts"}


def _exists(parent: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=parent)
    except OSError:
        return False
    return True
