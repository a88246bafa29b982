"""Weights of 4 bits as the CUDA kernels read them: numbers in one tensor, scales in another, as csrc/cuda/gemv.cu describes.

K2's own tensors are in this order already and are used as they lie; GGUF's Q4_0 and Q4_K are brought into it once.
Nothing is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from kcode_backend.weights.quant import QuantFormat, row_bytes

Bytes = npt.NDArray[np.uint8]
GROUP = 32
FORMATS = (QuantFormat.INT4, QuantFormat.Q4_0, QuantFormat.Q4_K)


@dataclass(frozen=True)
class Int4Weight:
    """quants: uint8 [rows, columns / 2]; scales: uint8 [rows, bytes], both contiguous and on one device."""

    format: QuantFormat
    rows: int
    columns: int
    quants: torch.Tensor = field(compare=False, repr=False)
    scales: torch.Tensor = field(compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        return self.quants.nbytes + self.scales.nbytes

    def to(self, device: torch.device) -> Int4Weight:
        return Int4Weight(self.format, self.rows, self.columns, self.quants.to(device), self.scales.to(device))


def from_int4(nibbles: Bytes, scales: Bytes, shape: tuple[int, int]) -> Int4Weight:
    """As `packed.pack_int4` takes them: compressed-tensors' `weight_packed` and bf16 `weight_scale` as bytes; shares memory."""
    rows, columns = shape
    groups = row_bytes(QuantFormat.INT4, columns) // QuantFormat.INT4.block_bytes
    for name, data, expected in (("nibbles", nibbles, rows * groups * 16), ("scales", scales, rows * groups * 2)):
        if data.dtype != np.uint8 or rows <= 0 or data.size != expected:
            raise ValueError(f"INT4 weight of shape {shape} needs {expected} bytes of {name}, got {data.size} of {data.dtype}")
    return Int4Weight(QuantFormat.INT4, rows, columns, _tensor(nibbles, rows), _tensor(scales, rows))


def from_gguf(quant: QuantFormat, data: Bytes, shape: tuple[int, int]) -> Int4Weight:
    """data: the raw bytes of `shape[0]` rows of Q4_0 or Q4_K."""
    rows, columns = shape
    expected = rows * row_bytes(quant, columns)
    if data.dtype != np.uint8 or rows <= 0 or data.size != expected:
        raise ValueError(f"{quant.name} weight of shape {shape} needs {expected} bytes, got {data.size} of {data.dtype}")
    blocks = np.ascontiguousarray(data).reshape(-1, quant.block_bytes)
    match quant:
        case QuantFormat.Q4_0:
            scales, halves = blocks[:, :2], blocks[:, 2:].reshape(-1, 1, 16)
            columns_of = np.concatenate((halves & 15, halves >> 4), axis=2)
        case QuantFormat.Q4_K:
            # 64 columns lie in 32 bytes: the first 32 low, the others high.
            scales, halves = blocks[:, :16], blocks[:, 16:].reshape(-1, 4, 32)
            columns_of = np.concatenate((halves & 15, halves >> 4), axis=2)
        case _:
            raise ValueError(f"{quant.name} has no CUDA kernel; there is one for {', '.join(known.name for known in FORMATS)}")
    pairs = columns_of.reshape(-1, 2)
    quants = np.bitwise_or(pairs[:, 0], np.left_shift(pairs[:, 1], 4), dtype=np.uint8)
    return Int4Weight(quant, rows, columns, _tensor(quants, rows), _tensor(scales, rows))


def _tensor(data: Bytes, rows: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(data).reshape(rows, -1))
