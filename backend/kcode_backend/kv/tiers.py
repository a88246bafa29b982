"""Blocks between the cache and the disk: what enters the index is copied out, what a sequence misses is brought back.

Used by the engine's thread alone, in pieces that are small beside a forward pass; the waiting is done by the disk tier's threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kcode_backend.kv.blockfile import StoredBlock
from kcode_backend.kv.disk import DiskTier, Load
from kcode_backend.kv.pool import BlockPool
from kcode_backend.kv.table import BlockCopy, BlockTable

PAUSE_S = 0.005
"""Between looks at a full queue of blocks to be written."""


class BlockBytes(Protocol):
    """The cache as far as the tiers see it."""

    def read_block(self, block: int) -> bytes: ...

    def write_block(self, block: int, data: bytes) -> None: ...


@dataclass(slots=True)
class TierCounters:
    """Totals since the start; written by the engine's thread, read by anyone."""

    stored_blocks: int = 0
    """Handed to the disk tier."""
    dropped_blocks: int = 0
    """Evicted before they could be."""
    fetched_blocks: int = 0
    fetched_tokens: int = 0
    """Tokens of prompts that came from disk instead of being computed."""


@dataclass(slots=True, eq=False)
class Fetch:
    """The blocks of one sequence on their way from disk. `over` when no more will come."""

    ticket: int
    load: Load
    over: bool = False
    tokens: int = 0
    """What it has brought so far."""
    tail: int | None = None
    """The block that shares only a beginning with the sequence; it is cached, not in its table."""

    def cancel(self) -> None:
        self.load.cancelled = True
        self.over = True


@dataclass(frozen=True, slots=True)
class Arrival:
    """The next block of a fetch; None when it was the last one. To be given to `Tiers.arrived`."""

    fetch: Fetch
    block: StoredBlock | None


class Tiers:
    """One pool and what lies below it; without a disk it does nothing."""

    def __init__(self, pool: BlockPool, cache: BlockBytes, disk: DiskTier | None, post: Callable[[Arrival], None]) -> None:
        """`post` takes an arrival to the engine's thread; it is called on another one."""
        self._pool = pool
        self._cache = cache
        self._disk = disk
        self._post = post
        self.counters = TierCounters()

    @property
    def wait_s(self) -> float | None:
        """How long to wait before the next `store` makes sense; None when there is nothing to store."""
        if self._disk is None or not self._pool.index.entered or not self._disk.writable:
            return None
        return 0.0 if self._disk.room else PAUSE_S

    def store(self, limit: int) -> None:
        """Copy out up to `limit` blocks that entered the index, as far as the disk tier has room."""
        disk, index = self._disk, self._pool.index
        if disk is None:
            return
        while limit > 0 and index.entered and disk.room:
            block = index.entered.popleft()
            if block not in index:
                self.counters.dropped_blocks += 1
                continue
            entry = index.entry(block)
            if not disk.holds(entry.chain):
                disk.keep(StoredBlock(entry.parent, entry.tokens, self._cache.read_block(block)))
                self.counters.stored_blocks += 1
                limit -= 1

    def used(self, table: BlockTable) -> None:
        """The table's context was in use just now."""
        if self._disk is not None:
            self._disk.used(table.chain)

    def fetch(self, table: BlockTable, ids: Sequence[int], computed: int, limit: int, ticket: int) -> Fetch | None:
        """Start to bring what continues the computed ids, up to `limit`; None when the disk has nothing more than the cache.

        The table must be at a block boundary, as `extend` leaves it.
        """
        disk = self._disk
        if disk is None or computed >= limit or disk.following(table.chain) <= self._pool.index.following(table.chain):
            return None

        def deliver(_: Load, block: StoredBlock | None) -> None:
            self._post(Arrival(fetch, block))

        fetch = Fetch(ticket, Load(table.chain, tuple(ids[computed:limit]), deliver))
        disk.load(fetch.load)
        return fetch

    def arrived(self, arrival: Arrival, table: BlockTable, ids: Sequence[int], computed: int, limit: int) -> int:
        """Put the block into the cache and the table; returns the new computed count.

        Without a free block the fetch is over: the rest is computed, which may take blocks from others.
        """
        fetch, block = arrival.fetch, arrival.block
        if block is None or fetch.over:
            self.dismissed(arrival)
            fetch.over = True
            return computed
        index = self._pool.index
        place = index.find(block.parent, block.tokens)
        if place is None:
            place = self._pool.take()
            if place is None:
                fetch.cancel()
                self.dismissed(arrival)
                return computed
            self._cache.write_block(place, block.data)
            for old in index.superseded(block.parent, block.tokens):
                self._pool.discard(old)
            index.add(place, block.parent, block.tokens)
            self._pool.give_back(place)
        self.dismissed(arrival)
        extended = table.extend(ids, computed, limit)
        if extended == computed:
            fetch.tail = place
        self.counters.fetched_blocks += 1
        fetch.tokens += extended - computed
        return extended

    def ended(self, fetch: Fetch, copy: BlockCopy | None, copied_tokens: int) -> int:
        """The sequence goes on without further blocks; returns the tokens that came from disk, its last copy's included."""
        tokens = fetch.tokens + (copied_tokens if copy and copy.source == fetch.tail else 0)
        self.counters.fetched_tokens += tokens
        return tokens

    def dismissed(self, arrival: Arrival) -> None:
        """Nobody wants it any more."""
        if self._disk is not None and arrival.block is not None:
            self._disk.taken()

    def close(self, timeout_s: float) -> None:
        """Bring all that entered the index to disk, for so long at most."""
        if self._disk is None:
            return
        deadline = time.monotonic() + timeout_s
        while (wait_s := self.wait_s) is not None and time.monotonic() < deadline:
            time.sleep(wait_s)
            self.store(16)
        self._disk.close(max(0.0, deadline - time.monotonic()))
