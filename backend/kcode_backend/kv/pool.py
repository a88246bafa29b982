"""Who owns which block of the cache: reference counts, free blocks, and cached blocks in the order of their last use.

Every block is in exactly one state: free, cached (indexed but unreferenced, may be evicted) or used (referenced).
free + cached + used is constant. Plain Python; the tensors are elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict

from kcode_backend.kv.prefix import PrefixIndex

BLOCK_TOKENS = 32
"""Tokens per block. The partial block at the end of a prefix is copied token by token, so the size costs no reuse; 32 halves the
tables and hashes of 16 while a sequence wastes at most 31 tokens of memory (0.9 MB for a 1.5 B model)."""


class BlockPool:
    """Hands out blocks 0 .. blocks-1. Evicts the least recently used cached block only when no block is free."""

    def __init__(self, blocks: int, index: PrefixIndex) -> None:
        self.blocks = blocks
        self.index = index
        # Popped from the end: low ids first, so a fresh cache touches its memory from the start.
        self._free = list(range(blocks - 1, -1, -1))
        self._references = [0] * blocks
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        return self.blocks - len(self._free) - len(self._cached)

    @property
    def available(self) -> int:
        """Blocks that `take` can give before it returns None."""
        return len(self._free) + len(self._cached)

    def references(self, block: int) -> int:
        return self._references[block]

    def take(self) -> int | None:
        """A block with one reference and undefined content; None when every block is in use."""
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            self.index.forget(block)
        else:
            return None
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more reference to an indexed block; a cached one becomes used."""
        assert block in self.index, f"block {block} is not indexed and cannot be shared"
        self._cached.pop(block, None)
        self._references[block] += 1

    def give_back(self, block: int) -> None:
        """One reference less; without any the block is cached when indexed, else free."""
        assert self._references[block] > 0, f"block {block} has no reference to give back"
        self._references[block] -= 1
        if self._references[block]:
            return
        if block in self.index:
            self._cached[block] = None
        else:
            self._free.append(block)

    def discard(self, block: int) -> None:
        """Forget an indexed block; its memory is free as soon as nobody refers to it."""
        self.index.forget(block)
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)

    def clear(self) -> None:
        """Forget every unreferenced cached block."""
        for block in list(self._cached):
            self.discard(block)
