"""File work inside the walls. Paths are relative to the workspace, which is the worker's current folder, or absolute.

Symlinks are followed: what they may reach is the kernel's business. Content is replaced by renaming a finished
neighbour, so a reader never sees half a file and a hard link to a file elsewhere is never written through.
"""

from __future__ import annotations

import hashlib
import os
import stat

from kcode_sandbox.protocol import Head

HASHED_BYTES = 256 << 20
CHUNK_BYTES = 1 << 20


class FileFailure(Exception):
    """An expected failure, sent to the client as FileError. `code` is an errno name or one of ours ("STALE")."""

    def __init__(self, code: str, path: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.path = path


def describe(path: str, found: os.stat_result, sha256: str = "") -> Head:
    kind = "file" if stat.S_ISREG(found.st_mode) else "dir" if stat.S_ISDIR(found.st_mode) else "other"
    return {
        "path": path,
        "kind": kind,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "mode": stat.S_IMODE(found.st_mode),
        "sha256": sha256,
    }


def file_stat(path: str) -> Head:
    real = os.path.realpath(path)
    return describe(real, os.stat(real))


def _open_regular(real: str, path: str) -> int:
    # Without O_NONBLOCK opening a FIFO would stop the worker until someone writes to it.
    fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise FileFailure("EISDIR", path, f"{path} is a folder, not a file")
        raise FileFailure("EINVAL", path, f"{path} is a device, pipe or socket, not a file")
    return fd


def read_file(path: str, offset: int, max_bytes: int) -> tuple[Head, bytes]:
    """At most `max_bytes` from `offset`; the hash is of the whole file, "" above HASHED_BYTES."""
    real = os.path.realpath(path)
    with open(_open_regular(real, path), "rb") as file:
        found = os.fstat(file.fileno())
        if offset == 0 and found.st_size <= max_bytes:
            data = file.read(max_bytes)
            return describe(real, found, hashlib.sha256(data).hexdigest()), data
        sha256 = ""
        if found.st_size <= HASHED_BYTES:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(offset)
        return describe(real, found, sha256), file.read(max_bytes)


def _sha256_now(real: str, path: str) -> str:
    """Hash of the present content, "" when there is none."""
    try:
        fd = _open_regular(real, path)
    except FileNotFoundError:
        return ""
    with open(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: str, data: bytes, expect_sha256: str | None, create_parents: bool) -> Head:
    real = os.path.realpath(path)
    folder = os.path.dirname(real)
    try:
        old: os.stat_result | None = os.stat(real)
    except FileNotFoundError:
        old = None
    if old is not None and not stat.S_ISREG(old.st_mode):
        kind = "a folder" if stat.S_ISDIR(old.st_mode) else "a device, pipe or socket"
        raise FileFailure("EISDIR" if stat.S_ISDIR(old.st_mode) else "EINVAL", path, f"{path} is {kind}, not a file")
    if old is not None and not os.access(real, os.W_OK):
        # A rename would replace a read-only file without asking; the owner's bit is a request to leave it alone.
        raise PermissionError(13, "Permission denied", path)
    _check_fresh(real, path, expect_sha256)
    if create_parents:
        os.makedirs(folder, exist_ok=True)
    # The name is short enough for any target, and git ignores nothing by it: it exists for microseconds.
    neighbour = os.path.join(folder, f".kcode-{os.urandom(8).hex()}.tmp")
    try:
        _write_new(neighbour, data, old)
        if expect_sha256 == "":
            _link_new(neighbour, real, path)
        else:
            _check_fresh(real, path, expect_sha256)
            os.replace(neighbour, real)
    finally:
        if os.path.lexists(neighbour):
            os.unlink(neighbour)
    _sync_folder(folder)
    return describe(real, os.stat(real), hashlib.sha256(data).hexdigest())


def _check_fresh(real: str, path: str, expect_sha256: str | None) -> None:
    if expect_sha256 is None:
        return
    now = _sha256_now(real, path)
    if now == expect_sha256:
        return
    if expect_sha256 == "":
        raise FileFailure("STALE", path, f"{path} exists already; read it before replacing it")
    if now == "":
        raise FileFailure("STALE", path, f"{path} no longer exists; it was read earlier")
    raise FileFailure("STALE", path, f"{path} changed since it was read; read it again")


def _write_new(neighbour: str, data: bytes, old: os.stat_result | None) -> None:
    with open(neighbour, "xb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        if old is not None:
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
                _keep_owner(file.fileno(), old)
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
        os.fsync(file.fileno())


def _keep_owner(fd: int, old: os.stat_result) -> None:
    """Only a root without walls may give a file away; inside the sandbox the file becomes ours."""
    try:
        os.fchown(fd, old.st_uid, old.st_gid)
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno != 22:
            raise


def _link_new(neighbour: str, real: str, path: str) -> None:
    """Give the file its name only if nobody took it meanwhile."""
    try:
        os.link(neighbour, real)
    except FileExistsError as error:
        raise FileFailure("STALE", path, f"{path} exists already; read it before replacing it") from error


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """A file or link is unlinked (never what a link points to); a folder goes with its content."""
    if os.path.isdir(path) and not os.path.islink(path):
        if os.path.realpath(path) == os.getcwd():
            raise FileFailure("EINVAL", path, f"{path} is the workspace itself; name what is inside it")
        import shutil  # heavy, and seldom needed

        shutil.rmtree(path)
    else:
        os.unlink(path)
