"""What is known of folders looked at before, so that only those that changed since are read again.

A folder's change time (ctime) moves with every name made, removed or renamed in it, and no call sets it: `utime` moves it too.
It says nothing of what lies in the folder's files or in the folders below. It is believed only on file systems of this machine
that are known to keep it, and only once it lies so far back that a change after the look must have had a later one.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "f2fs", "zfs", "overlay"})
"""Not those of a network, of another machine or of a program of somebody's: they say what time they like."""
SETTLED_NS = 3_000_000_000
"""More than the coarsest of these clocks: a second on ext3, some milliseconds elsewhere."""

Identity = tuple[int, int, int]
"""Device, inode and change time: the same ones are the same folder with the same names."""


Seen = dict[str, tuple[Identity, tuple[str, ...]]]


@dataclass(slots=True)
class Unchanged:
    """The folders of one tree, by their place in it. Each walk keeps only what it met."""

    _devices: frozenset[int] = field(default_factory=lambda: trusted_devices())
    _before: Seen = field(default_factory=Seen)
    _seen: Seen = field(default_factory=Seen)

    def begin(self) -> None:
        """Before each walk."""
        self._before, self._seen = self._seen, {}

    def inner(self, top: int, place: str) -> tuple[str, ...] | None:
        """The places of the folders in the one at `place` below `top`; None when it has to be read."""
        seen = self._before.get(place)
        if seen is None:
            return None
        # What this meets through a link that was put in the way has another identity, or is the same folder.
        try:
            status = os.stat(place or ".", dir_fd=top, follow_symlinks=False)
        except OSError:
            return None
        if seen[0] != (status.st_dev, status.st_ino, status.st_ctime_ns):
            return None
        self._seen[place] = seen
        return seen[1]

    def stamp(self, folder: int) -> Identity | None:
        """To take before `folder` is read, for `note`; None where it cannot be relied on."""
        now = time.time_ns()
        status = os.fstat(folder)
        if status.st_dev not in self._devices or status.st_ctime_ns > now - SETTLED_NS:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns

    def note(self, place: str, stamp: Identity | None, inner: tuple[str, ...]) -> None:
        if stamp is not None:
            self._seen[place] = (stamp, inner)


def trusted_devices() -> frozenset[int]:
    """Of the mounted file systems that keep change times. Empty where the kernel does not list them."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            lines = mounts.read().splitlines()
    except OSError:
        return frozenset()
    found: dict[int, bool] = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        major, _, minor = before.split(" ")[2].partition(":")
        found[os.makedev(int(major), int(minor))] = after.split(" ")[0] in FILE_SYSTEMS
    return frozenset(device for device, trusted in found.items() if trusted)
