"""Putting one file, link or absence in place of what was expected there; anything else that stands there is left alone.

Unlike files.py this follows no link: what is merged names the paths of a tree, not what they lead to.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from kcode_sandbox.protocol import Head, flag_of, text_of
from kcode_sandbox.worker.files import FileFailure

EXECUTABLE = 0o111


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands at a path: kind is "file", "link", "folder", "other" or "absent"."""

    kind: str
    executable: bool
    sha256: str


ABSENT = Standing("absent", False, "")


def standing(path: str) -> Standing:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return ABSENT
    if stat.S_ISLNK(found.st_mode):
        return Standing("link", False, hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest())
    if not stat.S_ISREG(found.st_mode):
        return Standing("folder" if stat.S_ISDIR(found.st_mode) else "other", False, "")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return Standing("file", bool(found.st_mode & 0o100), hashlib.file_digest(file, "sha256").hexdigest())


def place(path: str, wanted: Standing, data: bytes, expected: Standing) -> bool:
    """Make `path` what is wanted; False when it was so already. FileFailure "STALE" when it is neither that nor expected."""
    _check_folders(path)
    now = standing(path)
    if now == wanted:
        return False
    if now != expected:
        raise FileFailure("STALE", path, _difference(path, now, expected))
    if wanted.kind == "absent":
        os.unlink(path)
        _drop_empty_folders(path)
        return True
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    neighbour = os.path.join(folder, f".kcode-{secrets.token_hex(8)}.tmp")
    try:
        if wanted.kind == "link":
            os.symlink(data, neighbour)
        else:
            _write(neighbour, path, data, executable=wanted.executable)
        os.replace(neighbour, path)
    finally:
        Path(neighbour).unlink(missing_ok=True)
    return True


def standing_of(head: Head) -> Standing:
    return Standing(text_of(head, "kind"), flag_of(head, "executable"), text_of(head, "sha256"))


def _check_folders(path: str) -> None:
    place = ""
    for part in Path(path).parts[:-1]:
        place = os.path.join(place, part)
        try:
            mode = os.lstat(place).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            raise FileFailure("STALE", path, f"{place} is not a folder any more")


def _difference(path: str, now: Standing, expected: Standing) -> str:
    if now.kind == "absent":
        return f"{path} was deleted meanwhile"
    if expected.kind == "absent":
        return f"{path} was created meanwhile"
    if now.kind != expected.kind and (now.kind == "folder" or expected.kind != "other"):
        return f"{path} became a {now.kind} meanwhile"
    return f"{path} was changed meanwhile"


def _write(neighbour: str, path: str, data: bytes, *, executable: bool) -> None:
    mask = os.umask(0)
    os.umask(mask)
    try:
        mode = stat.S_IMODE(os.lstat(path).st_mode)
    except FileNotFoundError:
        mode = 0o666 & ~mask
    readable = (mode & 0o444) >> 2
    mode = (mode & ~EXECUTABLE) | (readable if executable else 0)
    with open(neighbour, "xb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def _drop_empty_folders(path: str) -> None:
    with contextlib.suppress(OSError):
        folder = os.path.dirname(path)
        while folder:
            os.rmdir(folder)
            folder = os.path.dirname(folder)
