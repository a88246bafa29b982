"""Norms, rope, activation, cache and attention against the torch reference, for every instruction set."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kcode_backend.kernels import ops, reference
from kcode_backend.kernels.native import Kernels

TOLERANCE = 2e-5


@dataclass(frozen=True)
class Heads:
    heads: int
    kv_heads: int
    width: int


HEADS = [Heads(12, 2, 128), Heads(4, 4, 80), Heads(7, 1, 64), Heads(3, 1, 20), Heads(70, 1, 32)]


@pytest.mark.usefixtures("active")
def test_norms_match_for_any_width() -> None:
    for rows, width in ((1, 1), (3, 7), (5, 77), (33, 1536)):
        x, weight = torch.randn(rows, width), torch.randn(width)
        torch.testing.assert_close(
            ops.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6), rtol=TOLERANCE, atol=TOLERANCE
        )
        residual = torch.randn(rows, width)
        expected_residual = residual.clone()
        expected = reference.add_rms_norm(x, expected_residual, weight, 1e-6)
        torch.testing.assert_close(ops.add_rms_norm(x, residual, weight, 1e-6), expected, rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(residual, expected_residual)


@pytest.mark.usefixtures("active")
def test_norm_of_heads_keeps_leading_dimensions() -> None:
    x, weight = torch.randn(5, 3, 64), torch.randn(64)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.usefixtures("active")
def test_silu_mul_matches_up_to_extreme_gates() -> None:
    for rows, width in ((1, 1), (3, 1037), (40, 896)):
        gate_up = torch.randn(rows, 2 * width) * 6
        gate_up[:, 0] = 200.0
        gate_up[:, width - 1] = -200.0
        torch.testing.assert_close(ops.silu_mul(gate_up), reference.silu_mul(gate_up), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_views_of_a_joint_projection_in_place(interleaved: bool) -> None:
    for heads, rotary, tokens in ((HEADS[0], 128, 1), (HEADS[1], 64, 9), (HEADS[3], 6, 70)):
        table = torch.randn(100, rotary)
        positions = torch.randint(0, 100, (tokens,), dtype=torch.int32)
        joint = torch.randn(tokens, (heads.heads + 2 * heads.kv_heads) * heads.width)
        split = heads.heads * heads.width
        q = joint[:, :split].view(tokens, heads.heads, heads.width)
        k = joint[:, split : split + heads.kv_heads * heads.width].view(tokens, heads.kv_heads, heads.width)
        expected_q, expected_k = q.clone(), k.clone()
        values = joint[:, split + heads.kv_heads * heads.width :].clone()
        reference.rope_(expected_q, expected_k, positions, table, interleaved)
        ops.rope_(q, k, positions, table, interleaved)
        torch.testing.assert_close(q, expected_q, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(k, expected_k, rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(joint[:, split + heads.kv_heads * heads.width :], values)


@pytest.mark.usefixtures("active")
def test_store_kv_rounds_like_torch_and_touches_only_its_slots() -> None:
    k = torch.randn(6, 2, 20) * torch.tensor([1.0, 1e-6, 1e-8, 6e4, 1e6, 1.0])[:, None, None]
    v = torch.randn(6, 2, 20)
    caches = [torch.randn(5, 16, 2, 20).half() for _ in range(2)]
    expected = [cache.clone() for cache in caches]
    slots = torch.tensor([79, 0, 17, 16, 33, 5], dtype=torch.int32)
    reference.store_kv(k, v, expected[0], expected[1], slots)
    ops.store_kv(k, v, caches[0], caches[1], slots)
    assert torch.equal(caches[0], expected[0])
    assert torch.equal(caches[1], expected[1])


@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: f"{heads.heads}x{heads.width}")
@pytest.mark.parametrize("block_size", [16, 37])
def test_attention_matches_for_decode_prefill_and_mixed_batches(active: Kernels, heads: Heads, block_size: int) -> None:
    generator = torch.Generator().manual_seed(block_size)
    contexts, queries = [1, 37, 700, 1030, 90], [1, 37, 1, 9, 0]
    blocks = 80
    k_cache = torch.randn(blocks, block_size, heads.kv_heads, heads.width, generator=generator).half()
    v_cache = torch.randn(blocks, block_size, heads.kv_heads, heads.width, generator=generator).half()
    tables = torch.stack([torch.randperm(blocks, generator=generator)[:66] for _ in contexts]).to(torch.int32)
    tables[0, 1:] = -7
    starts = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32)
    context_lens = torch.tensor(contexts, dtype=torch.int32)
    q = torch.randn(sum(queries), heads.heads, heads.width, generator=generator) * 2
    arguments = (q, k_cache, v_cache, tables, starts, context_lens, heads.width**-0.5)
    torch.testing.assert_close(ops.paged_attention(*arguments), reference.paged_attention(*arguments), rtol=1e-4, atol=TOLERANCE)
    assert active.threads() >= 1


@pytest.mark.usefixtures("active")
def test_attention_survives_scores_far_apart() -> None:
    k_cache, v_cache = torch.zeros(4, 16, 1, 16).half(), torch.randn(4, 16, 1, 16).half()
    k_cache[3, 15] = 100.0
    k_cache[0, 0] = -100.0
    q = torch.full((1, 2, 16), 30.0)
    tables = torch.arange(4, dtype=torch.int32)[None]
    arguments = (
        q,
        k_cache,
        v_cache,
        tables,
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([64], dtype=torch.int32),
        0.25,
    )
    torch.testing.assert_close(ops.paged_attention(*arguments), reference.paged_attention(*arguments), rtol=1e-4, atol=TOLERANCE)


def test_wrong_arguments_are_named_with_their_numbers() -> None:
    cache = torch.zeros(4, 16, 2, 32).half()
    q, k = torch.zeros(3, 6, 32), torch.zeros(3, 2, 32)
    slots = torch.tensor([0, 1, 64], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"slots 0\.\.64 are outside of the cache's 64"):
        ops.store_kv(k, k, cache, cache, slots)
    wide, large = torch.zeros(4, 16, 4, 32).half(), torch.zeros(1, 16, 1, 320).half()
    with pytest.raises(ValueError, match="6 query heads are not a multiple of 4"):
        ops.paged_attention(q, wide, wide, *_one_sequence(3, 3, 4), 1.0)
    with pytest.raises(ValueError, match="sequence 0: 3 queries, context 65, 4 blocks of 16"):
        ops.paged_attention(q, cache, cache, *_one_sequence(3, 65, 4), 1.0)
    with pytest.raises(ValueError, match=r"sequence 0: blocks 0\.\.4 are outside of the cache's 4"):
        ops.paged_attention(q, cache, cache, *_one_sequence(3, 70, 5), 1.0)
    with pytest.raises(ValueError, match="seq_starts must run from 0 to 3"):
        ops.paged_attention(q, cache, cache, *_one_sequence(2, 5, 4), 1.0)
    with pytest.raises(ValueError, match="at most 256"):
        ops.paged_attention(torch.zeros(1, 1, 320), large, large, *_one_sequence(1, 1, 1), 1.0)
    with pytest.raises(ValueError, match=r"positions 0\.\.9 are outside of the table's 9"):
        ops.rope_(q, k, torch.tensor([0, 1, 9], dtype=torch.int32), torch.zeros(9, 32))
    with pytest.raises(ValueError, match="at most the head size 32"):
        ops.rope_(q, k, torch.zeros(3, dtype=torch.int32), torch.zeros(9, 34))
    with pytest.raises(ValueError, match="gate_up has 5 columns"):
        ops.silu_mul(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"weight must have shape \(8,\), got \(7,\)"):
        ops.rms_norm(torch.zeros(2, 8), torch.zeros(7), 1e-6)
    with pytest.raises(ValueError, match=r"int32 \[3\], got torch.int64"):
        ops.store_kv(k, k, cache, cache, torch.zeros(3, dtype=torch.int64))


def _one_sequence(queries: int, context: int, blocks: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    table = torch.arange(blocks, dtype=torch.int32)[None]
    return table, torch.tensor([0, queries], dtype=torch.int32), torch.tensor([context], dtype=torch.int32)
