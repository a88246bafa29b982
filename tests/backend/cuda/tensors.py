"""Random arguments of the operations, and how near to float64 their results must be."""

from __future__ import annotations

import numpy as np
import torch

from kcode_backend.cuda import weights
from kcode_backend.cuda.weights import Int4Weight
from kcode_backend.kernels import reference
from kcode_backend.weights.quant import QuantFormat
from tests.backend.kernels.blocks import random_rows

# bf16 keeps 8 bits: rounding a result once is an error of at most 2^-9 of it.
ROUNDED = 2**-8


def random_bf16(*shape: int, seed: int, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to(device)


def random_weight(quant: QuantFormat, rows: int, columns: int, seed: int) -> tuple[Int4Weight, torch.Tensor]:
    """And the same as float64 [rows, columns]."""
    raw = random_rows(quant, rows, columns, seed)
    dense = torch.from_numpy(reference.dequantize(quant, raw, columns)).double()
    if quant is not QuantFormat.INT4:
        return weights.from_gguf(quant, raw, (rows, columns)), dense
    blocks = raw.reshape(-1, 18)
    return weights.from_int4(np.ascontiguousarray(blocks[:, 2:]), np.ascontiguousarray(blocks[:, :2]), (rows, columns)), dense


def assert_near(
    actual: torch.Tensor, expected: torch.Tensor, size: torch.Tensor | float = 0.0, relative: float = ROUNDED
) -> None:
    """Within `relative` (one rounding to bf16) of the value, and 1e-5 of `size`, that of the terms it is the sum of."""
    error = (actual.cpu().double() - expected).abs()
    allowed = relative * expected.abs() + 1e-5 * size + 1e-30
    assert bool((error <= allowed).all()), f"off by {float((error / allowed).max()):.2f} times what is allowed"
