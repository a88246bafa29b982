"""The blocks of one sequence: found in the prefix index, grown as it computes, published as they fill, given back at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kcode_backend.kv.pool import BlockPool


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Before the next forward pass, block `source` is copied over block `target`; copies are done in the order of asking."""

    source: int
    target: int


class BlockTable:
    """Block i holds the tokens i * block_tokens and following. Full published blocks are never written again.

    All methods take the sequence's whole `ids`; `computed` counts the leading ids whose keys and values are in the blocks.
    """

    def __init__(self, pool: BlockPool, block_tokens: int) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self.blocks: list[int] = []
        self._published = 0
        self._parent = pool.index.root

    @property
    def chain(self) -> bytes:
        """The hash of the full published blocks: the context that the next block continues."""
        return self._parent

    def attach(self, ids: Sequence[int], computed: int, limit: int) -> tuple[int, BlockCopy | None]:
        """Take over what else is cached of the first `limit` ids: the new computed count, and the copy that a partial last
        block needs.

        The table must hold full cached blocks alone, as a new one and one after `extend` do. At least the last token of a
        prompt has to be computed for its logits: pass len(ids) - 1.
        """
        count = self.extend(ids, computed, limit)
        assert count == len(self.blocks) * self._block_tokens, "only a table of full blocks can be attached"
        partial = self._pool.index.longest(self._parent, ids[count : min(limit, count + self._block_tokens)])
        if partial is None:
            return count, None
        source, shared = partial
        # The reference keeps `take` from evicting the very block that is to be copied.
        self._pool.share(source)
        target = self._pool.take()
        self._pool.give_back(source)
        if target is None:
            return count, None
        self.blocks.append(target)
        return count + shared, BlockCopy(source, target)

    def extend(self, ids: Sequence[int], computed: int, limit: int) -> int:
        """Take over full cached blocks that continue the computed ids, up to `limit`; returns the new computed count.

        Acts only at a block boundary without blocks beyond it; another sequence may have computed the same prompt meanwhile.
        """
        size = self._block_tokens
        if computed != len(self.blocks) * size or computed != self._published * size:
            return computed
        while computed + size <= limit:
            block = self._pool.index.find(self._parent, tuple(ids[computed : computed + size]))
            if block is None:
                break
            self._pool.share(block)
            self.blocks.append(block)
            self._parent = self._pool.index.entry(block).chain
            self._published += 1
            computed += size
        return computed

    def grow(self, tokens: int) -> bool:
        """Have blocks for `tokens` tokens; False and no change when the pool has too few."""
        missing = self.missing(tokens)
        if missing > self._pool.available:
            return False
        for _ in range(missing):
            block = self._pool.take()
            assert block is not None, "the pool gave fewer blocks than it has available"
            self.blocks.append(block)
        return True

    def missing(self, tokens: int) -> int:
        """Blocks that `grow` would take."""
        return max(0, -(-tokens // self._block_tokens) - len(self.blocks))

    def publish(self, ids: Sequence[int], computed: int) -> None:
        """Let others find the blocks that are full by now."""
        size = self._block_tokens
        while (self._published + 1) * size <= computed:
            start = self._published * size
            self._enter(self.blocks[self._published], tuple(ids[start : start + size]))
            self._published += 1

    def close(self, ids: Sequence[int], computed: int) -> None:
        """Publish all that is computed, the partial last block too, and give every block back. The table is empty after."""
        self.publish(ids, computed)
        tail = tuple(ids[self._published * self._block_tokens : computed])
        if tail:
            found = self._pool.index.longest(self._parent, tail)
            if found is None or found[1] < len(tail):
                self._enter(self.blocks[self._published], tail)
        # Last blocks first: the beginning of a context is the most useful part and is evicted last.
        for block in reversed(self.blocks):
            self._pool.give_back(block)
        self.blocks = []
        self._published = 0
        self._parent = self._pool.index.root

    def _enter(self, block: int, tokens: tuple[int, ...]) -> None:
        index = self._pool.index
        for old in index.superseded(self._parent, tokens):
            self._pool.discard(old)
        if index.add(block, self._parent, tokens):
            chain = index.entry(block).chain
        else:
            known = index.find(self._parent, tokens)
            assert known is not None, "the index refused a block it does not know"
            chain = index.entry(known).chain
        self._parent = chain
