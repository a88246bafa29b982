"""After a command: what it left in the workspace that would run on the host, and was not there before, is held.

Mounts protect what exists when a sandbox starts. A repository made since then may have a configuration that runs programs at
the developer's next `git status`; a folder's environment may be sourced by their shell. Holding means renaming in place, so
nothing is lost and whoever wants it can rename it back.

This runs outside, over a tree that the commands control: every folder is opened from its parent without following links, files
are read bounded, and nothing is ever written.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kcode_sandbox.unchanged import Unchanged

SUFFIX = ".held-by-kcode"
HELD_NAMES = (".envrc", ".vscode", ".idea", ".claude", ".cursor", ".mcp.json", ".kcode")
"""Files and folders that tools on the host run or obey."""
REPOSITORY = frozenset({"HEAD", "objects", "refs"})
PRUNED = frozenset({"node_modules", "__pycache__", ".tox", "target"})
MAX_CONFIG_BYTES = 1 << 20
GIT_TIMEOUT_S = 10
# Values without any effect beyond the repository itself. Everything else in a new configuration might run a program.
HARMLESS = {
    "core": {
        *("repositoryformatversion", "filemode", "bare", "logallrefupdates", "ignorecase", "precomposeunicode", "symlinks"),
        *("autocrlf", "eol", "safecrlf", "abbrev", "worktree", "quotepath"),
    },
    "user": {"name", "email"},
    "remote": {"url", "fetch", "pushurl", "push", "tagopt", "prune", "mirror"},
    "branch": {"remote", "merge", "rebase", "description"},
    "submodule": {"url", "active", "update", "branch", "path", "ignore", "recurse"},
    "init": {"defaultbranch"},
    "pull": {"rebase", "ff"},
    "push": {"default", "autosetupremote"},
    "gc": {"auto"},
    "extensions": {"objectformat"},
}


@dataclass(slots=True)
class Guard:
    """One workspace. `known` are git folders and held names that the sandbox has protected by mounts."""

    workspace: Path
    known: frozenset[Path]
    held: list[str] = field(default_factory=list)
    """Everything so far, relative to the workspace, under the names it had."""
    _unchanged: Unchanged = field(default_factory=Unchanged)

    def sweep(self) -> list[str]:
        """What was held now. Blocks for some milliseconds: every folder is looked at, those that changed are read."""
        found: list[str] = []
        with suppress(OSError):
            top = os.open(self.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._walk(top, found)
            finally:
                os.close(top)
        self.held += found
        return found

    def _walk(self, top: int, found: list[str]) -> None:
        pending = [""]
        self._unchanged.begin()
        # All of them, however many: what is planted behind any limit would not be held.
        while pending:
            place = pending.pop()
            quiet = self._unchanged.inner(top, place)
            if quiet is not None:
                pending += quiet
                continue
            with suppress(OSError), _opened(top, place) as folder:
                pending += self._look(folder, place, found)

    def _look(self, folder: int, place: str, found: list[str]) -> tuple[str, ...]:
        """Hold what is in `folder`; the places of the folders in it."""
        stamp = self._unchanged.stamp(folder)
        with os.scandir(folder) as entries:
            names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        found += [os.path.join(place, name) for name in self._check(folder, place, names)]
        folders = (name for name, is_folder in names.items() if is_folder and name not in PRUNED and name != ".git")
        inner = tuple(os.path.join(place, name) for name in folders)
        # What a repository would run lies in its files and folders, which change without it.
        if ".git" not in names and not names.keys() >= REPOSITORY and names.keys().isdisjoint(HELD_NAMES):
            self._unchanged.note(place, stamp, inner)
        return inner

    def _check(self, folder: int, place: str, names: dict[str, bool]) -> Iterator[str]:
        here = self.workspace / place
        for name in HELD_NAMES:
            if name in names and here / name not in self.known and hold(folder, name):
                yield name
        if ".git" in names and here / ".git" not in self.known:
            yield from self._check_git(folder, here, is_folder=names[".git"])
        elif names.keys() >= REPOSITORY and here not in self.known:
            yield from _check_repository(folder)

    def _check_git(self, folder: int, here: Path, *, is_folder: bool) -> Iterator[str]:
        if is_folder:
            with suppress(OSError), _opened(folder, ".git") as git:
                for name in _check_repository(git):
                    yield f".git/{name}"
            return
        text = _read(folder, ".git")
        if text is None or self._leads_home(here, text):
            return
        if hold(folder, ".git"):
            yield ".git"

    def _leads_home(self, here: Path, text: bytes) -> bool:
        """A file `.git` that names a linked worktree of a protected repository, whose configuration that one shares."""
        target = os.fsdecode(text.removeprefix(b"gitdir:").strip())
        path = Path(os.path.normpath(here / target))
        if not any(path.parent == git / "worktrees" for git in self.known):
            return False
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return (_read(folder, "commondir") or b"").strip() == b"../.."
        finally:
            os.close(folder)


def _check_repository(git: int) -> Iterator[str]:
    """Holds what in the repository folder `git` would run something or redirects to a folder that does."""
    text = _read(git, "config")
    if text is not None and not is_harmless(text) and hold(git, "config"):
        yield "config"
    for name in ("commondir", "config.worktree"):
        if _exists(git, name) and hold(git, name):
            yield name
    if _has_hooks(git) and hold(git, "hooks"):
        yield "hooks"


def is_harmless(text: bytes) -> bool:
    """Whether a configuration has only keys that run nothing; git itself reads it, in no repository and without includes."""
    try:
        done = subprocess.run(
            ["git", "config", "--file", "-", "--no-includes", "--null", "--name-only", "--list"],
            input=text,
            capture_output=True,
            cwd="/",
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": "/", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/"},
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    if done.returncode != 0:
        return False
    return all(_is_harmless_key(os.fsdecode(key)) for key in done.stdout.split(b"\0") if key)


def _is_harmless_key(key: str) -> bool:
    section, _, rest = key.partition(".")
    return rest.rpartition(".")[2].lower() in HARMLESS.get(section.lower(), ())


def _has_hooks(git: int) -> bool:
    if not _exists(git, "hooks"):
        return False
    try:
        with _opened(git, "hooks") as hooks, os.scandir(hooks) as entries:
            return any(_is_hook(entry) for entry in entries)
    except OSError:
        return True  # a link or a file in its place


def _is_hook(entry: os.DirEntry[str]) -> bool:
    if entry.name.endswith(".sample"):
        return False
    return entry.is_symlink() or bool(entry.stat(follow_symlinks=False).st_mode & 0o111)


@contextmanager
def _opened(parent: int, place: str) -> Generator[int]:
    """The folder `place` below `parent`, no link followed on the way."""
    fd = os.dup(parent)
    try:
        for part in Path(place).parts:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _read(folder: int, name: str) -> bytes | None:
    """A small regular file; None when it is absent. One that is neither counts as something that must be held."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        return b"\0"
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_CONFIG_BYTES:
            return b"\0"
        return os.read(fd, MAX_CONFIG_BYTES)
    finally:
        os.close(fd)


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def hold(folder: int, name: str) -> bool:
    """False when it is gone meanwhile, or is one that a mount holds already."""
    for number in range(1000):
        held = f"{name}{SUFFIX}" + (f"-{number}" if number else "")
        if _exists(folder, held):
            continue
        try:
            os.rename(name, held, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            return False
        return True
    return False
