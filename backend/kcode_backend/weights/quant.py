"""The number formats a weight may be stored in: GGUF's, and the INT4 of compressed-tensors."""

from __future__ import annotations

from enum import Enum


class QuantFormat(Enum):
    """`value` is (number, elements per block, bytes per block); the number is GGML's type, or 1000 for INT4, which GGML lacks.

    Packing loses nothing for any of them: the integers, sub-scales and 16-bit scales of the file are kept as they are, in
    another order, and the float32 that they stand for is GGUF's dequantisation bit for bit; for INT4 it is (nibble - 8) * scale
    in float32, without the rounding to bf16 that a bf16 model would add.
    """

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    BF16 = (30, 1, 2)
    INT4 = (1000, 32, 18)

    @property
    def number(self) -> int:
        """`Format` of csrc/cpu/layout.h."""
        return self.value[0]

    @property
    def block_elements(self) -> int:
        return self.value[1]

    @property
    def block_bytes(self) -> int:
        return self.value[2]

    @property
    def is_quantized(self) -> bool:
        return self.block_elements > 1


GGML_FORMATS = {quant.number: quant for quant in QuantFormat if quant is not QuantFormat.INT4}


def format_of_ggml_type(number: int) -> QuantFormat:
    """Raises ValueError, naming the number, for a type the engine does not read."""
    quant = GGML_FORMATS.get(number)
    if quant is None:
        known = ", ".join(item.name for item in GGML_FORMATS.values())
        raise ValueError(f"GGML type {number} is not supported; the engine reads {known}")
    return quant


def row_bytes(quant: QuantFormat, columns: int) -> int:
    """Bytes of one row of `columns` elements; rows are whole blocks."""
    if columns <= 0 or columns % quant.block_elements:
        raise ValueError(f"{columns} columns are not a positive multiple of {quant.name}'s block of {quant.block_elements}")
    return columns // quant.block_elements * quant.block_bytes
