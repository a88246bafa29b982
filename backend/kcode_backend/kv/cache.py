"""The tensors that hold keys and values; who owns which block is the block pool's business."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kcode_backend.config import ModelConfig

KV_ITEM_BYTES = 2
"""Keys and values are float16."""


def bytes_per_token(config: ModelConfig) -> int:
    """Bytes of cache that one token takes over all layers."""
    return config.layers * 2 * config.kv_heads * config.head_dim * KV_ITEM_BYTES


@dataclass(frozen=True, slots=True)
class KVCache:
    """Per layer one tensor of keys and one of values, each float16 [blocks, block_size, kv_heads, head_dim].

    Memory is taken from the system only as blocks are first written: a fresh cache of any size costs nothing.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    block_size: int
    # Views of `parts` as uint8 [blocks, bytes]: numpy moves a block ten times faster than torch, whose calls cost more than
    # the bytes of one layer.
    _bytes: tuple[NDArray[np.uint8], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        views = tuple(part.view(part.shape[0], -1).view(torch.uint8).numpy() for part in self.parts)
        object.__setattr__(self, "_bytes", views)

    @property
    def blocks(self) -> int:
        return self.keys[0].shape[0]

    @property
    def layout(self) -> str:
        """Names how a block's bytes are to be read; blocks of caches with another layout are of no use."""
        keys = self.keys[0]
        return f"f16-{len(self.keys)}x{self.block_size}x{keys.shape[2]}x{keys.shape[3]}"

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Every tensor with a place for each block, which is its first dimension; a block is all of its places together."""
        return (*self.keys, *self.values)

    @property
    def block_bytes(self) -> int:
        return sum(places.shape[1] for places in self._bytes)

    def read_block(self, block: int) -> bytes:
        """A copy of the block: its places in `parts`, one after another."""
        return b"".join([places[block] for places in self._bytes])

    def write_block(self, block: int, data: bytes | bytearray | memoryview) -> None:
        """Make the block what `read_block` gave of a cache with this layout."""
        whole = np.frombuffer(data, dtype=np.uint8)
        if len(whole) != self.block_bytes:
            raise ValueError(f"a block of {self.layout} has {self.block_bytes} bytes, got {len(whole)}")
        start = 0
        for places in self._bytes:
            end = start + places.shape[1]
            places[block] = whole[start:end]
            start = end

    def copy_block(self, source: int, target: int) -> None:
        """Make block `target` equal to block `source`."""
        if source == target:
            return
        for places in self._bytes:
            places[target] = places[source]

    @staticmethod
    def allocate(config: ModelConfig, blocks: int, block_size: int) -> KVCache:
        """A cache of `blocks` blocks with undefined content."""
        if blocks < 1 or block_size < 1:
            raise ValueError(f"a cache needs at least one block of one token, got {blocks} blocks of {block_size}")
        shape = (blocks, block_size, config.kv_heads, config.head_dim)
        # torch.empty leaves the pages of large tensors unmapped until they are written.
        keys = tuple(torch.empty(shape, dtype=torch.float16) for _ in range(config.layers))
        values = tuple(torch.empty(shape, dtype=torch.float16) for _ in range(config.layers))
        return KVCache(keys, values, block_size)
