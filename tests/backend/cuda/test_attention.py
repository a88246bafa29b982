"""Decoding attention over pages against the engine's reference, which computes in float64 over the same pages."""

from __future__ import annotations

import pytest
import torch

from kcode_backend.cuda import attention
from kcode_backend.kernels import reference, reference_kv, reference_mla
from kcode_backend.kernels.pages import KVKind, LatentLayout, LatentPages, PageLayout, Pages
from tests.backend.cuda.tensors import assert_near, random_bf16

# Of the largest value: queries are float16, weights float16 (2^-11 each at most), the result bf16.
TOLERANCE = 2**-9
# One token, one past a strip, past a part of 256, past parts that are longer; 0 is a place in a batch that is not in use.
CONTEXTS = [1, 17, 65, 700, 0, 256]


def tables_of(contexts: list[int], block_size: int, blocks: int, seed: int) -> torch.Tensor:
    """Shuffled blocks; what is not used points nowhere."""
    needed = [-(-context // block_size) for context in contexts]
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    tables = torch.full((len(contexts), max(needed)), -(2**20), dtype=torch.int32)
    for sequence, count in enumerate(needed):
        tables[sequence, :count] = torch.tensor([order.pop() for _ in range(count)], dtype=torch.int32)
    return tables


def slots_of(tables: torch.Tensor, sequence: int, context: int, block_size: int) -> torch.Tensor:
    at = torch.arange(context)
    return (tables[sequence, at // block_size] * block_size + at % block_size).int()


def blocks_for(contexts: list[int], block_size: int) -> int:
    """And one that nobody uses."""
    return sum(-(-context // block_size) for context in contexts) + 1


def scattered(pages: Pages | LatentPages, contexts: list[int], seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Block tables of the contexts and their slots, in pages that are full of NaNs."""
    block_size = pages.layout.block_size
    pages.data.fill_(0xFF)
    tables = tables_of(contexts, block_size, blocks_for(contexts, block_size), seed)
    return tables, [slots_of(tables, sequence, context, block_size) for sequence, context in enumerate(contexts)]


def filled(layout: PageLayout, contexts: list[int], seed: int) -> tuple[Pages, torch.Tensor]:
    """Pages with NaNs wherever nothing was stored."""
    pages = Pages.allocate(layout, blocks_for(contexts, layout.block_size))
    tables, slots = scattered(pages, contexts, seed)
    generator = torch.Generator().manual_seed(seed)
    for context, places in zip(contexts, slots, strict=True):
        k, v = (torch.randn(context, layout.kv_heads, layout.head_dim, generator=generator) for _ in range(2))
        reference_kv.store_kv(k, v, pages, places)
    return pages, tables


def filled_latent(layout: LatentLayout, contexts: list[int], seed: int) -> tuple[LatentPages, torch.Tensor]:
    pages = LatentPages.allocate(layout, blocks_for(contexts, layout.block_size))
    tables, slots = scattered(pages, contexts, seed)
    generator = torch.Generator().manual_seed(seed)
    for context, places in zip(contexts, slots, strict=True):
        both = torch.randn(context, layout.rank + layout.rope, generator=generator)
        reference_mla.store_latent(both[:, : layout.rank], both[:, layout.rank :], pages, places)
    return pages, tables


def one_each(contexts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """seq_starts for one query each of the contexts that are in use, and these contexts."""
    used = [context for context in contexts if context]
    return torch.arange(len(used) + 1, dtype=torch.int32), torch.tensor(used, dtype=torch.int32)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "block_size"), [(12, 2, 128, 32), (7, 1, 64, 16), (20, 1, 64, 48), (4, 4, 128, 256)]
)
def test_paged_attention(heads: int, kv_heads: int, width: int, block_size: int, device: torch.device) -> None:
    pages, tables = filled(PageLayout(KVKind.F16, block_size, kv_heads, width), CONTEXTS, seed=heads)
    # Scores of several units, so that a few tokens have most of the weight.
    fused = random_bf16(len(CONTEXTS), (heads + 2) * width, seed=3, device=device) * 3
    q = fused[:, : heads * width].view(len(CONTEXTS), heads, width)
    moved = Pages.over(pages.layout, pages.data.to(device))
    contexts = torch.tensor(CONTEXTS, dtype=torch.int32).to(device)
    actual = attention.paged_attention(q, moved, tables.to(device), contexts, width**-0.5)
    used = [sequence for sequence, context in enumerate(CONTEXTS) if context]
    starts, lengths = one_each(CONTEXTS)
    expected = reference.paged_attention(q.cpu().float()[used], pages, tables[used], starts, lengths, width**-0.5).double()
    assert_near(actual[used], expected, float(expected.abs().max()) * TOLERANCE / 1e-5)
    assert not actual[CONTEXTS.index(0)].any()


@pytest.mark.parametrize(("heads", "rank", "rope", "block_size"), [(64, 512, 64, 64), (5, 64, 32, 16), (40, 192, 64, 48)])
def test_latent_attention(heads: int, rank: int, rope: int, block_size: int, device: torch.device) -> None:
    """K2's shape, and shapes of few heads and of more than a block's."""
    contexts = CONTEXTS if rank < 512 else [65, 0, 300]
    pages, tables = filled_latent(LatentLayout(KVKind.F16, block_size, rank, rope), contexts, seed=heads)
    both = random_bf16(len(contexts), heads, rank + 16 + rope, seed=3, device=device)
    q_latent, q_rope, scale = both[..., :rank], both[..., -rope:], 3 * (rank + rope) ** -0.5
    moved = LatentPages.over(pages.layout, pages.data.to(device))
    lengths = torch.tensor(contexts, dtype=torch.int32).to(device)
    actual = attention.latent_attention(q_latent, q_rope, moved, tables.to(device), lengths, scale)
    used = [sequence for sequence, context in enumerate(contexts) if context]
    parts = (q_latent.cpu().float()[used], q_rope.cpu().float()[used])
    expected = reference_mla.latent_attention(*parts, pages, tables[used], *one_each(contexts), scale).double()
    assert_near(actual[used], expected, float(expected.abs().max()) * TOLERANCE / 1e-5)
    assert not actual[contexts.index(0)].any()


def test_a_row_does_not_depend_on_what_is_computed_with_it(device: torch.device) -> None:
    contexts = [300, 40, 1000]
    pages, tables = filled(PageLayout(KVKind.F16, 16, 1, 64), contexts, seed=1)
    moved = Pages.over(pages.layout, pages.data.to(device))
    q = random_bf16(3, 2, 64, seed=2, device=device)
    lengths = torch.tensor(contexts, dtype=torch.int32).to(device)
    together = attention.paged_attention(q, moved, tables.to(device), lengths, 0.125)
    for sequence, context in enumerate(contexts):
        own = tables[sequence : sequence + 1, : -(-context // 16)].contiguous().to(device)
        rows = slice(sequence, sequence + 1)
        assert torch.equal(attention.paged_attention(q[rows], moved, own, lengths[rows], 0.125), together[rows])


def test_a_long_context_is_cut_into_longer_parts(device: torch.device) -> None:
    """64 parts of 256 are 16,384 tokens; beyond that the parts grow. Most blocks are the same one, which costs no memory."""
    context, layout = 16_500, PageLayout(KVKind.F16, 256, 1, 64)
    pages, written = filled(layout, [512], seed=4)
    tables = torch.full((1, -(-context // 256)), int(written[0, 0]), dtype=torch.int32)
    tables[0, 33] = written[0, 1]
    q = random_bf16(1, 1, 64, seed=5, device=device)
    lengths = torch.tensor([context], dtype=torch.int32)
    actual = attention.paged_attention(q, Pages.over(layout, pages.data.to(device)), tables.to(device), lengths.to(device), 0.3)
    starts = torch.tensor([0, 1], dtype=torch.int32)
    expected = reference.paged_attention(q.cpu().float(), pages, tables, starts, lengths, 0.3).double()
    assert_near(actual, expected, float(expected.abs().max()) * TOLERANCE / 1e-5)


def test_a_wrong_argument_is_refused_with_its_numbers(device: torch.device) -> None:
    layout = PageLayout(KVKind.F16, 32, 2, 128)
    pages = Pages.over(layout, torch.zeros(2, layout.layer_bytes, dtype=torch.uint8, device=device))
    tables, lengths = (torch.zeros(*shape, dtype=torch.int32, device=device) for shape in ((1, 2), (1,)))
    q = random_bf16(1, 4, 128, seed=1, device=device)
    with pytest.raises(ValueError, match="q has 3 heads of size 128, the cache 2 of 128"):
        attention.paged_attention(q[:, :3].contiguous(), pages, tables, lengths, 1.0)
    odd = random_bf16(2, 4 * 128 + 1, seed=1, device=device)[:, :-1].view(2, 4, 128)
    with pytest.raises(ValueError, match="q must lie at multiples of 4 bytes; its tokens are 1026 bytes apart"):
        attention.paged_attention(odd, pages, tables, lengths, 1.0)
    with pytest.raises(ValueError, match=r"context_lens must be contiguous int32 \[1, 1\]"):
        attention.paged_attention(q, pages, tables, lengths.repeat(2), 1.0)
    with pytest.raises(ValueError, match=r"block_tables must be contiguous int32 \[1, any\], got torch.int64"):
        attention.paged_attention(q, pages, tables.long(), lengths, 1.0)
    for wrong, said in (
        (PageLayout(KVKind.F16, 24, 2, 128), "blocks of 24 tokens have no CUDA kernel"),
        (PageLayout(KVKind.INT8, 32, 2, 128), "pages of int8 have no CUDA kernel"),
        (PageLayout(KVKind.F16, 32, 2, 80), "heads of size 80 have no CUDA kernel"),
    ):
        other = Pages.over(wrong, torch.zeros(2, wrong.layer_bytes, dtype=torch.uint8, device=device))
        with pytest.raises(ValueError, match=said):
            attention.paged_attention(random_bf16(1, 4, wrong.head_dim, seed=1, device=device), other, tables, lengths, 1.0)
    latent = LatentLayout(KVKind.F16, 32, 48, 16)
    held = LatentPages.over(latent, torch.zeros(2, latent.layer_bytes, dtype=torch.uint8, device=device))
    parts = random_bf16(1, 2, 48, seed=1, device=device), random_bf16(1, 2, 16, seed=1, device=device)
    with pytest.raises(ValueError, match="latent vectors of 48 with keys of 16 have no CUDA kernel"):
        attention.latent_attention(*parts, held, tables, lengths, 1.0)
    with pytest.raises(ValueError, match=r"q_rope must be bfloat16 \[n, heads, 16\]"):
        attention.latent_attention(parts[0], parts[0], held, tables, lengths, 1.0)
