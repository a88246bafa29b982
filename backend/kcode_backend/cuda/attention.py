"""Decoding attention on a GPU: one query per sequence over the pages of kernels/pages.py, kept as f16, in parts of a context.

The pages are the same bytes as on the CPU, so that a block moves between the two as it is; `kernels.reference_kv.store_kv` and
`kernels.reference_mla.store_latent` write them on any device. Contexts are not looked at here, since nothing may wait for the
GPU: the grid is made for the longest one that the block table has room for, and each must fit into it. A context of 0 gives 0.
"""

from __future__ import annotations

import math
from ctypes import c_float, c_int32, c_int64

import torch

from kcode_backend.cuda.checks import same_device, table, token_heads
from kcode_backend.cuda.launching import Argument, Shape, launcher_for
from kcode_backend.kernels.pages import KVKind, LatentLayout, LatentPages, PageLayout, Pages

# As in csrc/cuda: attention.cuh, gqa.cu, mla.cu and combine.cu.
MAX_SPLITS, MIN_PART = 64, 256
GQA_THREADS, GQA_HEADS, GQA_WIDTHS = 128, 16, (64, 128)
MLA_THREADS, MLA_HEADS, MLA_QUERY_PAD, MLA_WEIGHTS_STRIDE = 256, 32, 32, 72
COMBINE_THREADS = 128
# Tokens that a lane takes from one block.
_RUN = 16


def paged_attention(
    q: torch.Tensor, pages: Pages, block_tables: torch.Tensor, context_lens: torch.Tensor, scale: float
) -> torch.Tensor:
    """As `kernels.ops.paged_attention` with one query for each sequence: q [n, heads, d] -> [n, heads, d] bf16.

    block_tables: [n, max_blocks] int32, context_lens: [n] int32, the query's own token included.
    """
    token_heads("q", q)
    n, heads, width = q.shape
    layout = pages.layout
    _check_pages(layout, pages.data)
    if heads % layout.kv_heads or width != layout.head_dim:
        raise ValueError(
            f"q has {heads} heads of size {width}, the cache {layout.kv_heads} of {layout.head_dim}: "
            "a multiple of as many heads of the same size is needed"
        )
    if q.data_ptr() % 4 or q.stride(0) % 2:
        raise ValueError(f"q must lie at multiples of 4 bytes; its tokens are {2 * q.stride(0)} bytes apart")
    if width not in GQA_WIDTHS:
        raise ValueError(f"heads of size {width} have no CUDA kernel; there is one for {', '.join(map(str, GQA_WIDTHS))}")
    splits = _check_sequences(n, layout.block_size, block_tables, context_lens)
    same_device(q, pages.data, block_tables, context_lens)
    tiles = -(-(heads // layout.kv_heads) // GQA_HEADS)
    shape = Shape((n * layout.kv_heads * tiles, splits), GQA_THREADS, GQA_HEADS * width * 4 + GQA_HEADS * width * 2)
    arguments = (
        q, c_int64(q.stride(0)), c_int32(heads), pages.data, c_int64(pages.data.stride(0)), c_int32(layout.block_size),
        c_int32(layout.kv_heads), block_tables, c_int32(block_tables.shape[1]), context_lens, c_float(scale * math.log2(math.e)),
        c_int32(splits),
    )  # fmt: skip
    return _in_parts(f"gqa_{width}", shape, arguments, q.new_empty(n, heads, width), context_lens, splits)


def latent_attention(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    pages: LatentPages,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """As `kernels.ops.latent_attention` with one query for each sequence: weighted latent vectors [n, heads, rank] bf16.

    q_latent: [n, heads, rank], q_rope: [n, heads, rope], bf16; their tokens and heads may lie further apart than they are wide.
    """
    layout = pages.layout
    for name, tensor, width in (("q_latent", q_latent, layout.rank), ("q_rope", q_rope, layout.rope)):
        if tensor.dtype is not torch.bfloat16 or tensor.dim() != 3 or tensor.shape[2] != width or tensor.stride(2) != 1:
            raise ValueError(f"{name} must be bfloat16 [n, heads, {width}], got {tensor.dtype} {tuple(tensor.shape)}")
    n, heads, _ = q_latent.shape
    if q_rope.shape[:2] != (n, heads):
        raise ValueError(f"q_latent has shape {tuple(q_latent.shape)}, q_rope {tuple(q_rope.shape)}: tokens and heads must agree")
    _check_pages(layout, pages.data)
    if layout.rank % 64 or (layout.rank + layout.rope) % 32:
        raise ValueError(
            f"latent vectors of {layout.rank} with keys of {layout.rope} have no CUDA kernel: "
            "the first must be a multiple of 64, both together of 32"
        )
    splits = _check_sequences(n, layout.block_size, block_tables, context_lens)
    same_device(q_latent, q_rope, pages.data, block_tables, context_lens)
    shared = MLA_HEADS * 2 * (layout.rank + layout.rope + MLA_QUERY_PAD + MLA_WEIGHTS_STRIDE)
    shape = Shape((n * -(-heads // MLA_HEADS), splits), MLA_THREADS, shared)
    arguments = (
        q_latent, c_int64(q_latent.stride(0)), c_int64(q_latent.stride(1)), q_rope, c_int64(q_rope.stride(0)),
        c_int64(q_rope.stride(1)), c_int32(heads), pages.data, c_int64(pages.data.stride(0)), c_int32(layout.block_size),
        c_int32(layout.rank), c_int32(layout.rope), block_tables, c_int32(block_tables.shape[1]), context_lens,
        c_float(scale * math.log2(math.e)), c_int32(splits),
    )  # fmt: skip
    return _in_parts("mla", shape, arguments, q_latent.new_empty(n, heads, layout.rank), context_lens, splits)


def _in_parts(
    kernel: str, shape: Shape, arguments: tuple[Argument, ...], out: torch.Tensor, context_lens: torch.Tensor, splits: int
) -> torch.Tensor:
    """out, filled by the kernel's parts put together."""
    n, heads, width = out.shape
    if n:
        partial = out.new_empty(n, heads, splits, width, dtype=torch.float32)
        stats = out.new_empty(n, heads, splits, 2, dtype=torch.float32)
        launcher = launcher_for(out.device)
        launcher.launch(kernel, shape, (*arguments, partial, stats))
        launcher.launch(
            "attention_combine",
            Shape((heads, n), COMBINE_THREADS),
            (partial, stats, context_lens, c_int32(heads), c_int32(splits), c_int32(width), out),
        )
    return out


def _check_pages(layout: PageLayout | LatentLayout, data: torch.Tensor) -> None:
    if layout.kind is not KVKind.F16:
        raise ValueError(f"pages of {layout.kind.value} have no CUDA kernel, only those of f16")
    if layout.block_size % _RUN:
        raise ValueError(f"blocks of {layout.block_size} tokens have no CUDA kernel: a multiple of {_RUN} is needed")
    if data.data_ptr() % 16 or data.stride(0) % 16:
        raise ValueError(f"pages must lie at multiples of 16 bytes, {data.stride(0)} bytes apart is none")


def _check_sequences(n: int, block_size: int, block_tables: torch.Tensor, context_lens: torch.Tensor) -> int:
    """The number of parts that the longest possible context has."""
    table("block_tables", block_tables, torch.int32, n)
    table("context_lens", context_lens.view(1, -1), torch.int32, 1, n)
    return max(1, min(MAX_SPLITS, -(-block_tables.shape[1] * block_size // MIN_PART)))
