"""The tensors that hold keys and values; who owns which block is the block pool's business."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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

    @property
    def blocks(self) -> int:
        return self.keys[0].shape[0]

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
