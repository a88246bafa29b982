"""Git's blobs and trees written by hand, so that a snapshot of a tree in which little changed needs no process of git."""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

FOLDER_MODE = "40000"
_COMPRESSION = 1


def write_object(store: Path, kind: str, data: bytes) -> str:
    """Keep `data` in the git directory `store`; its id."""
    whole = f"{kind} {len(data)}\0".encode() + data
    name = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
    path = store / "objects" / name[:2] / name[2:]
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(zlib.compress(whole, _COMPRESSION))
        partial.replace(path)
    return name


def read_plain(root: Path, name: str, max_bytes: int) -> tuple[str, bytes] | None:
    """Git's mode and the content of a file or link below `root`; None for anything else, or when it is larger.

    No folder on the way may be a link: whoever changes the tree meanwhile cannot lead the reader out of it.
    """
    parent = os.open(root, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *folders, last = name.split("/")
        for folder in folders:
            inner = os.open(folder, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            os.close(parent)
            parent = inner
        if stat.S_ISLNK(os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode):
            return "120000", os.fsencode(os.readlink(last, dir_fd=parent))
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        with open(file, "rb") as opened:
            found = os.fstat(file)
            data = opened.read(max_bytes + 1) if stat.S_ISREG(found.st_mode) else b""
            if not stat.S_ISREG(found.st_mode) or len(data) > max_bytes:
                return None
            return "100755" if found.st_mode & stat.S_IXUSR else "100644", data
    except OSError:
        return None
    finally:
        os.close(parent)


class TreeIndex:
    """The files of a tree with their modes and ids, by folder; `write` computes anew only the folders that changed."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._folders: dict[str, dict[str, tuple[str, str]]] = {"": {}}
        self._changed = {""}

    def put(self, name: str, mode: str, blob: str) -> None:
        """Files and folders of one name replace each other; remove what is in the way first."""
        folder, _, last = name.rpartition("/")
        self._touch(folder)
        self._folders[folder][last] = (mode, blob)

    def remove(self, name: str) -> None:
        folder, _, last = name.rpartition("/")
        self._touch(folder)
        self._folders[folder].pop(last, None)

    def write(self) -> str:
        """Write the trees; the id of the whole."""
        root = ""
        for folder in sorted(self._changed, key=lambda path: (path.count("/") + bool(path), path), reverse=True):
            entries = self._folders[folder]
            parent, _, last = folder.rpartition("/")
            if not entries and folder:
                del self._folders[folder]
                if self._folders[parent].get(last, ("", ""))[0] == FOLDER_MODE:
                    del self._folders[parent][last]
                continue
            root = write_object(self._store, "tree", b"".join(_lines(entries)))
            if folder:
                self._folders[parent][last] = (FOLDER_MODE, root)
        self._changed = {""}
        return root

    def _touch(self, folder: str) -> None:
        while folder not in self._changed or folder not in self._folders:
            self._changed.add(folder)
            self._folders.setdefault(folder, {})
            folder = folder.rpartition("/")[0]


def _lines(entries: dict[str, tuple[str, str]]) -> Iterator[bytes]:
    """In git's order, in which a folder's name ends with a slash."""
    named = [(os.fsencode(name), mode, blob) for name, (mode, blob) in entries.items()]
    for name, mode, blob in sorted(named, key=lambda entry: entry[0] + b"/" if entry[1] == FOLDER_MODE else entry[0]):
        yield mode.encode() + b" " + name + b"\0" + bytes.fromhex(blob)


Stamp = tuple[int, ...]
RACY_NS = 50_000_000
"""A file touched so shortly before it was looked at may change again without a trace in its times."""


def stamp_of(found: os.stat_result, now_ns: int) -> Stamp:
    """Equal stamps of a file mean equal content; () is equal to nothing."""
    if max(found.st_mtime_ns, found.st_ctime_ns) > now_ns - RACY_NS:
        return ()
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode)


class Remembered:
    """The last snapshot of a tree with the stamps of its files: the next one reads what has another stamp."""

    def __init__(self, store: Path, root: Path, max_bytes: int, tree: str, staged: Iterator[tuple[str, str, str]]) -> None:
        """`staged` are the mode, id and name of each file in `tree`, which lies in `store`."""
        self._store = store
        self._root = root
        self._max_bytes = max_bytes
        self._index = TreeIndex(store)
        self._stamps: dict[str, Stamp] = {}
        self.tree = tree
        for mode, blob, name in staged:
            self._index.put(name, mode, blob)
            self._stamps[name] = ()

    def trust(self, stamps: dict[str, Stamp]) -> None:
        """These stamps, taken before the tree was read, belong to it."""
        self._stamps = {name: stamps.get(name, ()) for name in self._stamps}

    def update(self, stamps: dict[str, Stamp]) -> str:
        """Snapshot the files named in `stamps`; the id of the tree."""
        gone = self._stamps.keys() - stamps.keys()
        changed = [name for name, stamp in stamps.items() if not stamp or self._stamps.get(name) != stamp]
        for name in gone:
            self._index.remove(name)
            del self._stamps[name]
        for name in changed:
            read = read_plain(self._root, name, self._max_bytes)
            if read is None:
                self._index.remove(name)
                self._stamps.pop(name, None)
            else:
                self._index.put(name, read[0], write_object(self._store, "blob", read[1]))
                self._stamps[name] = stamps[name]
        if gone or changed:
            self.tree = self._index.write()
        return self.tree
