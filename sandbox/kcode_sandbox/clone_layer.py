"""What an overlay's upper layer says was touched, read on the host. See Documentation/filesystems/overlayfs in the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from kcode_sandbox.tree import Found, is_whiteout, leaves, look, opened, scan

OPAQUE = "user.overlay.opaque"
SKIPPED = frozenset({".git"})


def touched(upper: int, lower: int) -> Iterator[str]:
    """Every path whose file or link may differ from the lower tree's, deleted ones too; nothing inside `.git`."""
    pending = [""]
    while pending:
        for found in scan(upper, pending.pop()):
            if found.name in SKIPPED:
                continue
            if found.is_folder:
                pending.append(found.path)
                if _hides(upper, lower, found.path):
                    yield from leaves(lower, found.path, SKIPPED)
            elif found.is_special:
                if _is_deletion(upper, found):
                    yield from leaves(lower, found.path, SKIPPED)
                else:
                    yield found.path
            else:
                yield found.path
                yield from _replaced_folder(lower, found.path)


def _replaced_folder(lower: int, path: str) -> Iterator[str]:
    below = look(lower, path, hashed=False)
    if below is not None and below.kind == "folder":
        yield from leaves(lower, path, SKIPPED)


def _is_deletion(upper: int, found: Found) -> bool:
    folder, _, name = found.path.rpartition("/")
    try:
        with opened(upper, folder) as fd:
            return is_whiteout(os.stat(name, dir_fd=fd, follow_symlinks=False))
    except OSError:
        return False


def _hides(upper: int, lower: int, path: str) -> bool:
    """Whether nothing of the lower tree shows through the upper folder `path`."""
    below = look(lower, path, hashed=False)
    if below is None:
        return False
    if below.kind != "folder":
        return True
    with opened(upper, path) as fd:
        try:
            return os.getxattr(fd, OPAQUE) == b"y"
        except OSError as error:
            if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP}:
                raise
            return False
