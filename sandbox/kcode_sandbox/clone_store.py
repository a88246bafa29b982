"""The private folders in which clones keep what was written in them."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
from contextlib import suppress
from pathlib import Path

TRASH = "trash-"
UNREADY = "new-"


class Place:
    """One clone's folder, of this user alone. Its lock tells other processes that it is in use."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep_behind(folder)
        self._folder = folder
        name = secrets.token_hex(8)
        # Whoever sweeps must never see it without its lock.
        unready = folder / f"{UNREADY}{name}"
        unready.mkdir(mode=0o700)
        self._lock = os.open(unready / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = unready.rename(folder / name)
        self._dropped = False

    def make(self, name: str) -> Path:
        """A new folder in it."""
        path = self.path / name
        path.mkdir(mode=0o700)
        return path

    @property
    def opened_ns(self) -> int:
        """When it was made, in the file system's own clock."""
        return os.fstat(self._lock).st_ctime_ns

    def drop(self) -> None:
        """Rename away at once, delete behind."""
        if self._dropped:
            return
        self._dropped = True
        with suppress(FileNotFoundError):
            self.path.rename(self._folder / f"{TRASH}{self.path.name}")
        os.close(self._lock)
        sweep_behind(self._folder)


def sweep_behind(folder: Path) -> None:
    """Delete what was dropped, and what processes left that ended without dropping it, in a thread of its own."""
    threading.Thread(target=_sweep, args=(folder,), daemon=True).start()


def _sweep(folder: Path) -> None:
    try:
        paths = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for path in paths:
        if path.name.startswith(TRASH) or (not path.name.startswith(UNREADY) and _is_left(path)):
            _delete(path)


def _is_left(path: Path) -> bool:
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # being made, or being deleted by another
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(lock)


def _delete(path: Path) -> None:
    # The kernel leaves a folder without any permission in an overlay's work folder.
    for folder, names, _ in os.walk(path):
        for name in names:
            with suppress(OSError):
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)
    shutil.rmtree(path, ignore_errors=True)
