"""Blocks as bytes: what one cache gives, another of the same layout takes."""

from __future__ import annotations

import pytest
import torch

from kcode_backend.config import ModelConfig, RopeConfig
from kcode_backend.kernels import ops, reference
from kcode_backend.kv.cache import KVCache, bytes_per_block

CONFIG = ModelConfig(
    architecture="qwen2",
    name="shapes",
    layers=3,
    hidden=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp=8,
    vocab=16,
    norm_eps=1e-6,
    context_length=64,
    rope=RopeConfig(theta=1e4, dims=4),
    tied_embeddings=True,
    qkv_bias=False,
    rope_interleaved=False,
)


def random_cache(blocks: int, seed: int) -> KVCache:
    cache = KVCache.allocate(CONFIG, blocks, 8)
    generator = torch.Generator().manual_seed(seed)
    slots = torch.arange(blocks * 8, dtype=torch.int32)
    for pages in cache.layers:
        k, v = (torch.randn(len(slots), 2, 4, generator=generator) for _ in range(2))
        ops.store_kv(k, v, pages, slots)
    return cache


def test_a_block_moves_between_caches_and_touches_no_other() -> None:
    source, target = random_cache(5, 1), random_cache(4, 2)
    before = [target.read_block(block) for block in range(4)]
    data = source.read_block(3)
    assert len(data) == source.block_bytes == bytes_per_block(CONFIG, 8)
    target.write_block(2, data)
    for ours, theirs in zip(target.layers, source.layers, strict=True):
        for mine, other in zip(reference.read_kv(ours), reference.read_kv(theirs), strict=True):
            assert torch.equal(mine[2], other[3])
    assert [target.read_block(block) for block in (0, 1, 3)] == [before[block] for block in (0, 1, 3)]
    target.copy_block(2, 0)
    assert target.read_block(0) == data
    assert target.read_block(1) == before[1]


def test_what_was_read_does_not_change_with_the_cache() -> None:
    cache = random_cache(2, 3)
    data = cache.read_block(0)
    cache.copy_block(1, 0)
    assert cache.read_block(0) != data
    cache.write_block(0, data)
    assert cache.read_block(0) == data


def test_a_block_of_another_size_is_refused() -> None:
    cache = random_cache(1, 4)
    with pytest.raises(ValueError, match=r"a block of f16-3x2x4x8 has \d+ bytes, got 767"):
        cache.write_block(0, bytearray(767))
