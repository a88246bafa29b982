"""The disk tier: computed blocks outlive the engine's process. Two threads of its own write and read; nobody waits for them.

Below the root lies one folder per space (see blockfile), so models, cache layouts and versions of the code never meet. Several
processes may share the root: a block's file is written beside and renamed, one process at a time sweeps, and a file that another
process has removed is a miss.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kcode_backend.kv import blockfile
from kcode_backend.kv.blockfile import BlockName, Damaged, StoredBlock
from kcode_backend.kv.prefix import chain, common
from kcode_backend.kv.sweep import sweep

log = logging.getLogger(__name__)

QUEUE_BYTES = 32 << 20
"""Blocks that wait to be written; beyond it `room` is False."""
IN_FLIGHT = 16
"""Blocks that are read and not yet taken."""
SIBLINGS = 64
"""Of the blocks after one context, how many heads are read to find the one that shares the longest beginning."""
_SWEEP_SHARE = 8
"""A sweep is due after writing the budget divided by this, since other processes write too."""


Held = TypeVar("Held")


class Catalog:
    """What lies in one folder. Thread-safe; refreshed by listing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._children: dict[bytes, dict[bytes, BlockName]] = {}
        self._names: dict[bytes, BlockName] = {}
        self.refresh()

    def refresh(self) -> None:
        names = [name for file in os.listdir(self._folder) if (name := blockfile.parse_name(file))]
        with self._lock:
            self._children, self._names = {}, {}
            for name in names:
                self._add(name)

    def add(self, name: BlockName) -> None:
        with self._lock:
            self._add(name)

    def forget(self, name: BlockName) -> None:
        with self._lock:
            if self._names.pop(name.chain, None) is not None:
                siblings = self._children[name.parent]
                del siblings[name.chain]
                if not siblings:
                    del self._children[name.parent]

    def get(self, after: bytes) -> BlockName | None:
        """The block that ends with the context `after`."""
        return self._names.get(after)

    def children(self, parent: bytes) -> tuple[BlockName, ...]:
        """The blocks that continue the context, the newest last."""
        with self._lock:
            return tuple(self._children.get(parent, {}).values())

    def _add(self, name: BlockName) -> None:
        self._children.setdefault(name.parent, {})[name.chain] = name
        self._names[name.chain] = name


@dataclass(slots=True, eq=False)
class Load:
    """Blocks wanted: those that continue the context `parent` with `ids`.

    `deliver` is called on the reading thread with each block in order, at last once with None. The last block may share only a
    beginning with the ids. Every delivered block has to be answered with DiskTier.taken.
    """

    parent: bytes
    ids: tuple[int, ...]
    deliver: Callable[[Load, StoredBlock | None], None]
    cancelled: bool = False


class DiskTier:
    """Blocks of one space. Every method returns at once and may be called from any thread but `close`, which waits."""

    def __init__(self, root: Path, space: bytes, block_tokens: int, block_bytes: int, budget_bytes: int) -> None:
        """Creates the folders for this user alone. Raises OSError when they cannot be used."""
        self._root = root
        self._folder = root / space.hex()
        for folder in (root, self._folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        self._space = space
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes
        self._budget_bytes = budget_bytes
        self._catalog = Catalog(self._folder)
        self._lock = threading.Lock()
        self._waiting: set[bytes] = set()
        """Chains of the blocks in the queue."""
        self._total_bytes = 0
        self._allowed_bytes = budget_bytes
        self._unswept_bytes = 0
        self._writable = True
        self._closing = False
        self._writes: queue.SimpleQueue[StoredBlock | BlockName | None] = queue.SimpleQueue()
        self._loads: queue.SimpleQueue[Load | None] = queue.SimpleQueue()
        self._slots = threading.Semaphore(IN_FLIGHT)
        self._threads = [
            threading.Thread(target=self._write_all, name="kv-write", daemon=True),
            threading.Thread(target=self._read_all, name="kv-read", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def writable(self) -> bool:
        """False for good after the first write that failed."""
        return self._writable

    @property
    def room(self) -> bool:
        """Whether `keep` would take a block."""
        return self._writable and (len(self._waiting) + 1) * self._block_bytes <= max(QUEUE_BYTES, self._block_bytes)

    def holds(self, after: bytes) -> bool:
        """Whether the block that ends with this context is on disk or about to be."""
        return self._catalog.get(after) is not None or after in self._waiting

    def following(self, parent: bytes) -> set[bytes]:
        """What contexts the blocks after `parent` end with."""
        return {name.chain for name in self._catalog.children(parent)}

    def keep(self, block: StoredBlock) -> bool:
        """Have the block written; False and nothing done when there is no room."""
        if not self.room:
            return False
        with self._lock:
            self._waiting.add(block.name.chain)
        self._writes.put(block)
        return True

    def used(self, after: bytes) -> None:
        """The context was in use just now, so it and all before it goes last."""
        name = self._catalog.get(after)
        if name is not None:
            self._writes.put(name)

    def load(self, load: Load) -> None:
        self._loads.put(load)

    def taken(self) -> None:
        """A delivered block is in use or dropped; another may be read."""
        self._slots.release()

    def close(self, timeout_s: float) -> None:
        """Write what is in the queue, for so long at most."""
        self._closing = True
        self._writes.put(None)
        self._loads.put(None)
        self._threads[0].join(timeout_s)

    def _write_all(self) -> None:
        self._sweep()
        while (job := self._writes.get()) is not None:
            try:
                if isinstance(job, BlockName):
                    self._touch(job)
                else:
                    self._write(job)
            except OSError as error:
                if not self._writable:
                    continue
                self._writable = False
                log.warning("no more blocks are kept in %s until the engine is started again: %s", self._root, error)

    def _write(self, block: StoredBlock) -> None:
        name = block.name
        try:
            if self._writable and self._catalog.get(name.chain) is None:
                size = blockfile.write(self._folder, self._space, block)
                self._catalog.add(name)
                self._total_bytes += size
                self._unswept_bytes += size
                self._remove_beginnings(block)
        finally:
            with self._lock:
                self._waiting.discard(name.chain)
        if self._total_bytes > self._allowed_bytes or self._unswept_bytes > self._budget_bytes // _SWEEP_SHARE:
            self._sweep()

    def _remove_beginnings(self, block: StoredBlock) -> None:
        """Partial blocks that the new one contains and continues are of no use any more."""
        for name in self._catalog.children(block.parent):
            if name.tokens < len(block.tokens) and chain(block.parent, block.tokens[: name.tokens]) == name.chain:
                self._remove(name)

    def _sweep(self) -> None:
        try:
            swept = sweep(self._root, self._budget_bytes)
            if swept is None:
                return
            self._catalog.refresh()
        except OSError as error:
            log.warning("cannot tidy %s: %s", self._root, error)
            return
        self._total_bytes, self._unswept_bytes = swept.kept_bytes, 0
        self._allowed_bytes = swept.allowed_bytes
        if swept.allowed_bytes < self._block_bytes and self._writable:
            self._writable = False
            log.warning(
                "no blocks are kept in %s until the engine is started again: less than 1 GiB of the disk is free", self._root
            )

    def _touch(self, name: BlockName) -> None:
        try:
            os.utime(self._folder / name.file)
        except FileNotFoundError:
            self._catalog.forget(name)

    def _remove(self, name: BlockName) -> None:
        self._catalog.forget(name)
        (self._folder / name.file).unlink(missing_ok=True)

    def _read_all(self) -> None:
        while (load := self._loads.get()) is not None:
            try:
                self._read(load)
            except Exception:
                log.exception("reading blocks from %s failed; they are computed", self._folder)
            finally:
                load.deliver(load, None)

    def _read(self, load: Load) -> None:
        last: bytes | None = None
        for block in self._walk(load.parent, load.ids):
            while not self._slots.acquire(timeout=0.5):
                if load.cancelled or self._closing:
                    return
            if load.cancelled:
                self._slots.release()
                return
            load.deliver(load, block)
            last = block.name.chain
        if last is not None:
            self.used(last)

    def _walk(self, parent: bytes, ids: tuple[int, ...]) -> Iterator[StoredBlock]:
        size = self._block_tokens
        for start in range(0, len(ids), size):
            block = self._longest(parent, ids[start : start + size])
            if block is None:
                return
            yield block
            if block.tokens != ids[start : start + size]:
                return
            parent = block.name.chain

    def _longest(self, parent: bytes, ids: tuple[int, ...]) -> StoredBlock | None:
        """The block after `parent` that shares the longest beginning with `ids`."""
        exact = self._catalog.get(chain(parent, ids))
        if exact is not None and exact.parent == parent:
            block = self._checked(exact, blockfile.read)
            if block is not None:
                return block
        best: tuple[int, BlockName] | None = None
        for name in self._catalog.children(parent)[-SIBLINGS:]:
            tokens = self._checked(name, blockfile.read_tokens)
            shared = common(tokens, ids) if tokens else 0
            if shared > (best[0] if best else 0):
                best = (shared, name)
        return self._checked(best[1], blockfile.read) if best else None

    def _checked(self, name: BlockName, reading: Callable[[Path, bytes, BlockName, int], Held]) -> Held | None:
        """None for a file that is gone or damaged; a damaged one is removed."""
        try:
            return reading(self._folder, self._space, name, self._block_bytes)
        except FileNotFoundError:
            self._catalog.forget(name)
        except (Damaged, OSError) as error:
            log.warning("removed the cached block %s: %s", self._folder / name.file, error)
            self._remove(name)
        return None
