"""Which files there are: git's own answer where there is git, else a walk that skips what nobody edits."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

SKIPPED = frozenset(
    {
        *(".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", ".tox", ".nox", ".mypy_cache"),
        *(".pytest_cache", ".ruff_cache", ".cache", ".idea", "target", "dist", "build", ".eggs", ".gradle"),
    }
)
GIT = (
    *("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*"),
    *("-c", "core.untrackedCache=false", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
)
GIT_TIMEOUT_S = 60.0
Entry = tuple[str, os.stat_result]


def list_files(root: str, max_files: int, environment: Mapping[str, str]) -> list[Entry]:
    """Regular files below `root`, named relative to the current folder, newest first, the newest `max_files` of them."""
    top = Path(root)
    if not top.is_dir():
        raise NotADirectoryError(20, "Not a directory", root)
    base = Path(os.path.relpath(os.path.realpath(root), os.getcwd()))
    names = _git_files(base, environment)
    if names is None:
        names = _walked_files(base)
    found: dict[str, os.stat_result] = {}
    for name in names:
        try:
            status = os.stat(name)
        except OSError:
            continue  # deleted but still in the index, or a link to nothing
        if stat.S_ISREG(status.st_mode):
            found[name] = status
    newest = sorted(found.items(), key=lambda entry: (-entry[1].st_mtime_ns, entry[0]))
    return newest[:max_files]


def _git_files(base: Path, environment: Mapping[str, str]) -> Iterator[str] | None:
    """None where git is missing or `base` is in no repository."""
    try:
        done = subprocess.run(
            GIT, cwd=base, env=dict(environment), capture_output=True, timeout=GIT_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return _joined(base, done.stdout, environment)


def _joined(base: Path, listed: bytes, environment: Mapping[str, str]) -> Iterator[str]:
    for raw in listed.split(b"\0"):
        if not raw:
            continue
        path = base / os.fsdecode(raw)
        # git names a nested repository or a submodule as one entry: ask it about its own files.
        if path.is_dir() and not path.is_symlink():
            yield from _git_files(path, environment) or _walked_files(path)
        else:
            yield str(path)


def _walked_files(base: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(base):
        folders[:] = [name for name in folders if name not in SKIPPED]
        for name in files:
            yield os.path.normpath(os.path.join(folder, name))
