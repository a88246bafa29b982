"""The number formats a weight may be stored in, with the block geometry of GGUF."""

from __future__ import annotations

from enum import Enum


class QuantFormat(Enum):
    """`value` is (GGML type number, elements per block, bytes per block)."""

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q8_0 = (8, 32, 34)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    BF16 = (30, 1, 2)

    @property
    def ggml_type(self) -> int:
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


_BY_GGML_TYPE = {quant.ggml_type: quant for quant in QuantFormat}


def format_of_ggml_type(number: int) -> QuantFormat:
    """Raises ValueError, naming the number, for a type the engine does not read."""
    quant = _BY_GGML_TYPE.get(number)
    if quant is None:
        known = ", ".join(item.name for item in QuantFormat)
        raise ValueError(f"GGML type {number} is not supported; the engine reads {known}")
    return quant


def row_bytes(quant: QuantFormat, columns: int) -> int:
    """Bytes of one row of `columns` elements; rows are whole blocks."""
    if columns <= 0 or columns % quant.block_elements:
        raise ValueError(f"{columns} columns are not a positive multiple of {quant.name}'s block of {quant.block_elements}")
    return columns // quant.block_elements * quant.block_bytes
