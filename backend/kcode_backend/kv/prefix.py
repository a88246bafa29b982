"""Which cached block holds which tokens: a hash-chained index of blocks whose keys and values are computed.

A block is known by the hash of everything before it and by its own token ids. The ids are compared on every hit, so a hash
alone never decides. The chain starts from the model's fingerprint: blocks of another model can never match.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

HASH_BYTES = 16
ENTERED = 1 << 16
"""Blocks remembered as new; older ones are forgotten, since a block that nobody copied for so long is dropped anyway."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A cached block: `tokens` after the context that `parent` stands for. `chain` is the hash that includes them."""

    parent: bytes
    tokens: tuple[int, ...]
    chain: bytes


class PrefixIndex:
    """Maps contexts to blocks. It owns no block: the pool tells it when one is taken away."""

    def __init__(self, fingerprint: str) -> None:
        self.root = hashlib.blake2b(fingerprint.encode(), digest_size=HASH_BYTES).digest()
        """The hash of the empty context."""
        self._entries: dict[int, Entry] = {}
        self._children: dict[bytes, dict[tuple[int, ...], int]] = {}
        self.entered: deque[int] = deque(maxlen=ENTERED)
        """Blocks in the order in which they entered; whoever keeps copies of them takes them from here."""

    def __contains__(self, block: int) -> bool:
        return block in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, block: int) -> Entry:
        return self._entries[block]

    def find(self, parent: bytes, tokens: tuple[int, ...]) -> int | None:
        """The block that holds exactly `tokens` after `parent`."""
        return self._children.get(parent, {}).get(tokens)

    def longest(self, parent: bytes, tokens: Sequence[int]) -> tuple[int, int] | None:
        """The block after `parent` that shares the longest beginning with `tokens`, and how many tokens of it (at least 1)."""
        best: tuple[int, int] | None = None
        for held, block in self._children.get(parent, {}).items():
            shared = common(held, tokens)
            if shared > (best[1] if best else 0):
                best = (block, shared)
        return best

    def add(self, block: int, parent: bytes, tokens: tuple[int, ...]) -> bool:
        """Enter a block; False and no change when the same context is already known (the block stays private)."""
        siblings = self._children.setdefault(parent, {})
        if tokens in siblings:
            return False
        siblings[tokens] = block
        self._entries[block] = Entry(parent, tokens, chain(parent, tokens))
        self.entered.append(block)
        return True

    def following(self, parent: bytes) -> set[bytes]:
        """What contexts the blocks after `parent` end with."""
        return {self._entries[block].chain for block in self._children.get(parent, {}).values()}

    def forget(self, block: int) -> None:
        """Drop a block; blocks after it become unreachable until the same tokens are computed again."""
        entry = self._entries.pop(block)
        siblings = self._children[entry.parent]
        del siblings[entry.tokens]
        if not siblings:
            del self._children[entry.parent]

    def superseded(self, parent: bytes, tokens: tuple[int, ...]) -> list[int]:
        """Blocks after `parent` whose tokens are a true beginning of `tokens`: useless once a block with `tokens` is known."""
        siblings = self._children.get(parent, {})
        return [block for held, block in siblings.items() if len(held) < len(tokens) and tokens[: len(held)] == held]


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of the context `parent` followed by `tokens`."""
    return hashlib.blake2b(array("q", tokens).tobytes(), key=parent, digest_size=HASH_BYTES).digest()


def common(held: Sequence[int], tokens: Sequence[int]) -> int:
    """The length of the longest beginning that both have."""
    count = 0
    for left, right in zip(held, tokens, strict=False):
        if left != right:
            break
        count += 1
    return count
