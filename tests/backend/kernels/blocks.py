"""Random GGUF blocks: gguf cannot quantise K-quants, but any bytes with sane f16 scales are valid blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kcode_backend.weights.quant import QuantFormat, row_bytes

# Byte offsets of the 16-bit scales and minimums inside a block.
SCALES = {
    QuantFormat.Q4_0: (0,),
    QuantFormat.Q4_1: (0, 2),
    QuantFormat.Q5_0: (0,),
    QuantFormat.Q5_1: (0, 2),
    QuantFormat.Q8_0: (0,),
    QuantFormat.INT4: (0,),
    QuantFormat.Q4_K: (0, 2),
    QuantFormat.Q5_K: (0, 2),
    QuantFormat.Q6_K: (208,),
}


def random_rows(quant: QuantFormat, rows: int, columns: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Raw bytes [rows, row_bytes] with scales of about 0.01."""
    rng = np.random.default_rng(seed)
    if quant is QuantFormat.F32:
        return rng.standard_normal((rows, columns)).astype(np.float32).view(np.uint8)
    if quant is QuantFormat.F16:
        return rng.standard_normal((rows, columns)).astype(np.float16).view(np.uint8)
    if quant is QuantFormat.BF16:
        wide = rng.standard_normal((rows, columns)).astype(np.float32).view(np.uint32)
        return (wide >> 16).astype(np.uint16).view(np.uint8)
    data = rng.integers(0, 256, (rows, row_bytes(quant, columns)), dtype=np.uint8)
    blocks = data.reshape(rows, -1, quant.block_bytes)
    for offset in SCALES[quant]:
        scale = rng.uniform(0.5, 2.0, blocks.shape[:2]) * 1e-2 * rng.choice([-1, 1], blocks.shape[:2])
        if quant is QuantFormat.INT4:
            stored = (scale.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        else:
            stored = scale.astype(np.float16).view(np.uint16)
        blocks[:, :, offset : offset + 2] = stored[..., None].view(np.uint8)
    return data


def columns_for(quant: QuantFormat, about: int) -> int:
    """A valid row length near `about`; deliberately odd for formats without blocks."""
    return max(about // quant.block_elements, 1) * quant.block_elements if quant.is_quantized else about - 5
