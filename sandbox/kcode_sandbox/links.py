"""Hard links: a file's other names, which no mount over its first one covers.

Inside, none can be made to what a mount holds (the kernel refuses links across mounts), but an earlier session may have made one
to what was not held then, and the user's own tools make them to files outside. Both are looked for before a start, and become
read-only.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.repositories import PRUNED, Protection, protect
from kcode_sandbox.toolchains import outermost

SEARCH_TIMEOUT_S = 20.0
MAX_SINGLE = 64
"""Above so many files outside ones are linked to, the workspace's entries that hold them are read-only as wholes."""
PROGRAM = "find"
STORE = ".pnpm"
"""The folder in node_modules whose files are links into a store that all of a user's projects share."""

Identity = tuple[int, int]


class LinkSearch:
    """Looks for files with more than one name below `folders` from now on, beside whatever the caller does meanwhile."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = outermost(folders)
        command = [PROGRAM, *map(str, self._folders), "-type", "f", "-links", "+1", "-print0"]
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd="/"
            )
        except FileNotFoundError:
            self._process = None

    def result(self) -> list[Path]:
        """Blocks until it has ended. SandboxUnavailableError when that takes too long: what was not found is not held."""
        if self._process is None:
            return list(_walked(self._folders))
        try:
            output, _ = self._process.communicate(timeout=SEARCH_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self.stop()
            raise SandboxUnavailableError(
                f"looking for hard links below {', '.join(map(str, self._folders))} took over {SEARCH_TIMEOUT_S:.0f} s; "
                "start kcode in a smaller folder"
            ) from error
        return [Path(os.fsdecode(name)) for name in output.split(b"\0") if name]

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _walked(folders: Iterable[Path]) -> Iterator[Path]:
    pending = [str(folder) for folder in folders]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
                continue
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_nlink > 1:
                    yield Path(entry.path)


@dataclass(frozen=True, slots=True)
class _Name:
    path: Path
    identity: Identity
    names: int
    """How many the file has, wherever they are."""


def protect_all(folders: Sequence[Path], kept: Sequence[Path], held: Iterable[Path] = ()) -> Protection:
    """Of every repository below the writable `folders`, of `kept` where it lies in them, and of all their other names.

    `held` is read-only already. Raises SandboxUnavailableError.
    """
    search = LinkSearch(folders)
    found = Protection()
    try:
        for folder in folders:
            found.add(protect(folder))
        for folder in folders:
            found.keep(folder, kept)
        # Known only now: the folder that a linked worktree shares with its repository.
        shared = LinkSearch(found.shared).result() if found.shared else []
        names = list(dict.fromkeys((*search.result(), *shared)))
        protect_links(found, names, (*folders, *found.shared), held)
    except BaseException:
        search.stop()
        found.release()
        raise
    return found


def protect_links(git: Protection, found: Sequence[Path], folders: Sequence[Path], held: Iterable[Path] = ()) -> None:
    """Make read-only what of `found` is a name of a file that `git` or `held` protects, or of one outside of `folders`.

    Left alone: the objects of repositories, which git checks, and folders of packages other than a store's.
    """
    covered = (*git.readonly, *held)
    known = {name.identity for name in _named(path for path in found if _below(path, covered))}
    free = [path for path in found if not _below(path, covered)]
    exposed = {path for path in free if _is_exposed(path, folders)}
    if not known and not exposed:
        return
    names = list(_named(free))
    inside = Counter(name.identity for name in names)
    linked = {name.path for name in names if name.identity in known}
    linked |= {_whole(name.path) for name in names if name.path in exposed and inside[name.identity] < name.names}
    if len(linked) > MAX_SINGLE:
        linked = {_top(path, folders) for path in linked}
    git.linked = sorted(linked)
    git.readonly = sorted({*git.readonly, *linked}, key=lambda path: (len(path.parts), path))


def _named(paths: Iterable[Path]) -> Iterator[_Name]:
    for path in paths:
        try:
            status = os.stat(path, follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield _Name(path, (status.st_dev, status.st_ino), status.st_nlink)


def _below(path: Path, places: Iterable[Path]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def _is_exposed(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a file outside that has this name too would be worth an attack."""
    folder = _folder_of(path, folders)
    parts = {*path.relative_to(folder).parts, *({".git"} & {folder.name})}
    return STORE in parts or not parts & {".git", *PRUNED}


def _whole(path: Path) -> Path:
    """The store's folder for a file in one."""
    return Path(*path.parts[: path.parts.index(STORE) + 1]) if STORE in path.parts else path


def _top(path: Path, folders: Iterable[Path]) -> Path:
    """The entry of the writable folder that holds it."""
    folder = _folder_of(path, folders)
    return folder / path.relative_to(folder).parts[0]


def _folder_of(path: Path, folders: Iterable[Path]) -> Path:
    return max((folder for folder in folders if path.is_relative_to(folder)), key=lambda folder: len(folder.parts))
