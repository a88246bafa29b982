"""The operations of kernels/ops.py on a GPU: bf16 activations, the same names and meanings. Shapes are checked here.

What would need a look at the GPU's memory is not checked, since nothing may wait for it: positions must lie in the table.
"""

from __future__ import annotations

from ctypes import c_float, c_int32, c_int64

import torch

from kcode_backend.cuda.checks import contiguous, matrix, same_device, token_heads, vector
from kcode_backend.cuda.launching import MAX_SHARED_BYTES, Shape, launcher_for
from kcode_backend.cuda.weights import GROUP, Int4Weight

# As in csrc/cuda: threads of a block, and of gemv.cu rows of a warp and tokens of a launch.
THREADS, GEMV_THREADS, GEMV_ROWS, GEMV_TOKENS = 256, 128, 2, 4
MAX_GEMV_TOKENS = 16
"""Of `linear`: more tokens read the weight once per GEMV_TOKENS of them, which a matrix product must not."""
_GROUP_SHARED_BYTES = 2 * GROUP + 4


def linear(x: torch.Tensor, weight: Int4Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x: [n, in] with n at most 16 -> [n, out]. Products and sums in float32, rounded once to bf16."""
    matrix("x", x)
    n, width = x.shape
    if width != weight.columns:
        raise ValueError(f"x has {width} columns, the weight takes {weight.columns}")
    if n > MAX_GEMV_TOKENS:
        raise ValueError(f"{n} tokens: the 4-bit kernels take at most {MAX_GEMV_TOKENS}")
    same_device(x, weight.quants, weight.scales)
    if bias is not None:
        vector("bias", bias, weight.rows)
        same_device(x, bias)
    out = x.new_empty(n, weight.rows)
    rows_per_block = GEMV_THREADS // 32 * GEMV_ROWS
    for first in range(0, n, GEMV_TOKENS):
        tokens = min(GEMV_TOKENS, n - first)
        tile = min(width // GROUP, MAX_SHARED_BYTES // (tokens * _GROUP_SHARED_BYTES) // 32 * 32)
        shape = Shape((-(-weight.rows // rows_per_block), 1), GEMV_THREADS, tokens * tile * _GROUP_SHARED_BYTES)
        launcher_for(x.device).launch(
            f"gemv_{weight.format.name}_{tokens}",
            shape,
            (
                weight.quants, weight.scales, x[first : first + tokens], bias,
                c_int32(weight.rows), c_int32(width), c_int32(tile), out[first : first + tokens],
            ),
        )  # fmt: skip
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x: [..., width] contiguous -> x / rms(x) * weight."""
    return _norm(x, None, weight, eps)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """residual += x in place; returns rms_norm(residual), of the sum as it was rounded to bf16."""
    contiguous("residual", residual)
    if x.shape != residual.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, residual {tuple(residual.shape)}")
    return _norm(x, residual, weight, eps)


def _norm(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    contiguous("x", x)
    width = x.shape[-1]
    vector("weight", weight, width)
    same_device(x, weight, *(() if residual is None else (residual,)))
    if width % 8:
        raise ValueError(f"rows of {width} are not a multiple of 8")
    out = torch.empty_like(x)
    rows = x.numel() // width
    if rows:
        arguments = (x, residual, weight, c_float(eps), c_int32(width), out)
        launcher_for(x.device).launch("rms_norm", Shape((rows, 1), THREADS), arguments)
    return out


def rope_(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, table: torch.Tensor, interleaved: bool = False) -> None:
    """Rotates q: [n, heads, d] and k: [n, kv_heads, d] in place, as kernels.ops.rope_; table: [positions, rotary] float32."""
    token_heads("q", q)
    token_heads("k", k)
    n, heads, width = q.shape
    if k.shape[::2] != (n, width):
        raise ValueError(f"k has shape {tuple(k.shape)}, q {tuple(q.shape)}: tokens and head size must agree")
    if table.dtype is not torch.float32 or table.dim() != 2 or not table.is_contiguous():
        raise ValueError(f"table must be contiguous float32 [positions, rotary], got {table.dtype} {tuple(table.shape)}")
    if table.shape[1] > width or table.shape[1] % 2:
        raise ValueError(f"table has shape {tuple(table.shape)}; its width must be even and at most the head size {width}")
    if positions.dtype is not torch.int32 or positions.shape != (n,) or not positions.is_contiguous():
        raise ValueError(f"positions must be contiguous int32 [{n}], got {positions.dtype} {tuple(positions.shape)}")
    same_device(q, k, positions, table)
    if n:
        arguments = (
            q, c_int64(q.stride(0)), c_int32(heads), k, c_int64(k.stride(0)), c_int32(k.shape[1]), c_int32(width),
            positions, table, c_int32(table.shape[1]), c_int32(interleaved),
        )  # fmt: skip
        launcher_for(q.device).launch("rope", Shape((n, 1), THREADS), arguments)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [n, 2*m] -> silu(gate_up[:, :m]) * gate_up[:, m:], [n, m]; m is even."""
    matrix("gate_up", gate_up)
    n, both = gate_up.shape
    if both % 4:
        raise ValueError(f"gate_up has {both} columns, a multiple of 4 is needed")
    width = both // 2
    out = gate_up.new_empty(n, width)
    if n:
        shape = Shape((-(-width // 2 // THREADS), n), THREADS)
        launcher_for(gate_up.device).launch("silu_mul", shape, (gate_up, c_int32(width), out))
    return out
