"""What in a workspace's git repositories runs code or redirects configuration, and must stay as it is.

Hooks, configuration and the folders above them: read-only binds alone are bypassed by renaming a parent and building
it anew, so every folder between the workspace and a protected path is *pinned* (bound onto itself: EBUSY).
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.guard import HELD_NAMES

PRUNED = frozenset({"node_modules", ".venv", "venv", "__pycache__", ".tox", "target"})
MARKED = frozenset({".git", *HELD_NAMES})
SELF = b".\n"
CONFIG_PATH = re.compile(r"^\s*(hookspath|path)\s*=\s*\"?([^\"\n;#]+)", re.IGNORECASE | re.MULTILINE)


@dataclass(slots=True)
class Protection:
    """`pinned` before `readonly`, each parents first. `locks` hold the placeholders made on the host."""

    pinned: list[Path] = field(default_factory=list)
    readonly: list[Path] = field(default_factory=list)
    linked: list[Path] = field(default_factory=list)
    """Those of `readonly` that are so only for a hard link in them."""
    shared: list[Path] = field(default_factory=list)
    sockets: list[Path] = field(default_factory=list)
    """Of services outside, which would act for whoever speaks to them."""
    known: set[Path] = field(default_factory=set)
    """Git folders, and files and folders that steer programs, which were there before; see guard.py."""
    locks: list[tuple[Path, int]] = field(default_factory=list)

    def add(self, other: Protection) -> None:
        """Protect what `other` does as well; parents still come first."""
        self.pinned = sorted({*self.pinned, *other.pinned}, key=lambda path: (len(path.parts), path))
        self.readonly = sorted({*self.readonly, *other.readonly}, key=lambda path: (len(path.parts), path))
        self.shared += other.shared
        self.sockets += other.sockets
        self.known |= other.known
        self.locks += other.locks

    def keep(self, top: Path, paths: Iterable[Path]) -> None:
        """Protect those of `paths` that lie in the writable folder `top`, before anything of `add`."""
        inside = [path for path in paths if path != top and path.is_relative_to(top) and path.exists()]
        own = Protection()
        _protect_paths(own, top, inside)
        self.add(own)

    def release(self) -> None:
        """Remove placeholders nobody else uses."""
        for path, fd in self.locks:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(path, fd) and os.pread(fd, 16, 0) == SELF:
                    path.unlink()
            except (BlockingIOError, FileNotFoundError):
                continue
            finally:
                os.close(fd)
        self.locks.clear()


def protect(workspace: Path) -> Protection:
    """Protection for every repository below `workspace`. Raises SandboxUnavailableError where a link is in the way."""
    found = Protection()
    try:
        for git in _survey(found, workspace):
            found.known.add(git)
            if git.is_dir():
                _protect_folder(found, workspace, git)
            else:
                _protect_link(found, workspace, git)
    except PermissionError as error:
        found.release()
        raise SandboxUnavailableError(_foreign(workspace, error)) from error
    except BaseException:
        found.release()
        raise
    found.pinned = sorted(set(found.pinned), key=lambda path: (len(path.parts), path))
    found.readonly = sorted(set(found.readonly), key=lambda path: (len(path.parts), path))
    return found


def _foreign(workspace: Path, error: PermissionError) -> str:
    """Why nothing can be protected there, and the way out."""
    owner, own = workspace.stat().st_uid, os.geteuid()
    whose = f"; {workspace} belongs to {_named_user(owner)} and kcode runs as {_named_user(own)}" if owner != own else ""
    return (
        f"{error.filename or workspace} cannot be protected, kcode may not write there{whose}: run kcode as the owner, "
        "work in a clone of your own (git clone), or only look at it with --sandbox read-only"
    )


def _named_user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


def sockets_below(workspace: Path) -> list[Path]:
    """Sockets in the workspace, where nothing else of it has to be protected."""
    found = Protection()
    for _ in _survey(found, workspace):
        continue
    return found.sockets


def _survey(found: Protection, workspace: Path) -> Iterator[Path]:
    """Every `.git` below the workspace; on the way sockets, and what steers programs, go into `found`."""
    pending = [str(workspace)]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        if {"HEAD", "objects", "refs"} <= {entry.name for entry in entries}:
            _protect_bare(found, workspace, Path(folder))
        for entry in entries:
            # Nearly all are files that mean nothing: for them no more than this is done.
            if entry.name not in MARKED and entry.is_file(follow_symlinks=False):
                continue
            _note(found, workspace, entry)
            if entry.name == ".git":
                if entry.is_symlink() and folder == str(workspace):
                    raise SandboxUnavailableError(f"{entry.path} is a symbolic link; replace it by what it points to")
                if not entry.is_symlink():
                    yield Path(entry.path)
            elif entry.is_dir(follow_symlinks=False) and entry.name not in PRUNED:
                pending.append(entry.path)


def _note(found: Protection, workspace: Path, entry: os.DirEntry[str]) -> None:
    if entry.name in HELD_NAMES:
        path = Path(entry.path)
        found.known.add(path)
        if not entry.is_symlink():
            _protect_paths(found, workspace, [path])
    elif _is_socket(entry):
        found.sockets.append(Path(entry.path))


def _is_socket(entry: os.DirEntry[str]) -> bool:
    # Only of the few that are nothing else is asked more than the folder says already.
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink():
        return False
    return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)


def _protect_bare(found: Protection, workspace: Path, git: Path) -> None:
    """A folder that is a repository without being called .git."""
    found.known.add(git)
    _protect_paths(
        found, workspace, [path for path in (git / "config", git / "hooks") if path.exists() and not path.is_symlink()]
    )


def _protect_paths(found: Protection, workspace: Path, paths: list[Path]) -> None:
    found.readonly += paths
    for path in paths:
        found.pinned += [parent for parent in path.parents if parent != workspace and parent.is_relative_to(workspace)]


def _protect_folder(found: Protection, workspace: Path, git: Path) -> None:
    """`git` is a repository's own folder, inside the workspace or the verified common folder of a worktree."""
    if not (git / "HEAD").exists():
        return  # not a repository; git ignores it too
    hooks = git / "hooks"
    if not hooks.exists() and not hooks.is_symlink():
        hooks.mkdir()
    readonly = [hooks, git / "config", git / "config.worktree", *_configured(workspace, git)]
    for inner in _inner_repositories(git):
        readonly += [inner / "config", inner / "hooks", inner / "commondir"]
    readonly = [path for path in readonly if path.exists() or path.is_symlink()]
    for path in readonly:
        _refuse_links(workspace if path.is_relative_to(workspace) else git, path)
    found.locks.append(_place_self_reference(git / "commondir"))
    readonly.append(git / "commondir")
    found.readonly += readonly
    for path in readonly:
        top = workspace if path.is_relative_to(workspace) else git.parent
        found.pinned += [parent for parent in path.parents if parent != top and parent.is_relative_to(top)]


def _inner_repositories(git: Path) -> Iterator[Path]:
    """Git folders of submodules and linked worktrees."""
    for folder, folders, files in os.walk(git / "modules"):
        if "HEAD" in files and "config" in files:
            yield Path(folder)
            folders[:] = [name for name in folders if name == "modules"]
    worktrees = git / "worktrees"
    if worktrees.is_dir():
        yield from (path for path in worktrees.iterdir() if path.is_dir() and not path.is_symlink())


def _configured(workspace: Path, git: Path) -> list[Path]:
    """Folders of hooks and included files that the configuration names inside the workspace."""
    try:
        text = (git / "config").read_text(errors="replace")
    except OSError:
        return []
    paths: list[Path] = []
    for match in CONFIG_PATH.finditer(text):
        base = git.parent if match[1].lower() == "hookspath" else git
        path = Path(os.path.normpath(base / match[2].strip()))
        if path.is_relative_to(workspace) and path != workspace and path.exists():
            paths.append(path)
    return paths


def _protect_link(found: Protection, workspace: Path, git: Path) -> None:
    """`.git` is a file naming a folder elsewhere: a linked worktree or a submodule.

    The name alone proves nothing, since an earlier command may have written it: the folder must point back.
    """
    found.readonly.append(git)
    found.pinned += [parent for parent in git.parents if parent != workspace and parent.is_relative_to(workspace)]
    if git.parent != workspace:
        return
    common = common_folder(workspace)
    if common is not None:
        found.shared.append(common)
        _protect_folder(found, workspace, common)


def common_folder(workspace: Path) -> Path | None:
    """The git folder that a workspace which is a linked worktree shares with its repository, when it lies outside."""
    git = workspace / ".git"
    try:
        target = git.read_text().removeprefix("gitdir:").strip()
        gitdir = (git.parent / target).resolve(strict=True)
        points_back = Path((gitdir / "gitdir").read_text().strip()).resolve() == git
        common = (gitdir / (gitdir / "commondir").read_text().strip()).resolve(strict=True)
    except (OSError, ValueError):
        return None
    if points_back and gitdir.parent == common / "worktrees" and not common.is_relative_to(workspace):
        return common
    return None


def _place_self_reference(path: Path) -> tuple[Path, int]:
    """A `commondir` that says "here": while it exists read-only, no other can redirect configuration and hooks.

    The shared lock tells other sessions that it is in use.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if _same_file(path, fd):
            break
        os.close(fd)
    content = os.pread(fd, 4096, 0)
    if not content:
        os.pwrite(fd, SELF, 0)
    elif content != SELF:
        os.close(fd)
        raise SandboxUnavailableError(
            f"{path} says {content[:80]!r}, but a repository with its own .git folder has no such file; "
            "remove it if you did not make it"
        )
    return path, fd


def _same_file(path: Path, fd: int) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    opened = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _refuse_links(top: Path, path: Path) -> None:
    for part in (path, *path.parents):
        if part == top:
            return
        if part.is_symlink():
            raise SandboxUnavailableError(f"{part} is a symbolic link and cannot be protected; replace it by what it points to")
