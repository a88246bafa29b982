"""The pages that hold keys and values: their sizes, as csrc/cpu/layout.h defines them, and one layer of a cache."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import Enum

import torch

# Vectors of every instruction set divide it, so that pages are the same bytes on every machine.
PAGE_UNIT = 16
NIBBLE_GROUP = 32
"""Numbers that share a scale and a minimum in int4 pages."""


class KVKind(Enum):
    """How numbers of the cache are stored, in the order of `PageKind` of layout.h; `value` is the name on command lines.

    int8: one scale per token and head. int4: a scale and a minimum per 32 dimensions of a token and head. Both hold heads rotated
    by a Hadamard matrix, so that dimensions with outliers cost the others nothing.
    """

    F16 = "f16"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def number(self) -> int:
        """`PageKind` of layout.h."""
        return list(KVKind).index(self)


@dataclass(frozen=True, slots=True)
class PageLayout:
    """A page holds the keys and values of one kv head for the tokens of one block."""

    kind: KVKind
    block_size: int
    kv_heads: int
    head_dim: int

    @property
    def tokens(self) -> int:
        """Tokens that a page has room for: the block's, rounded up."""
        return -(-self.block_size // PAGE_UNIT) * PAGE_UNIT

    @property
    def width(self) -> int:
        """Numbers of a key or value in a page: the head's, rounded up with zeros."""
        unit = NIBBLE_GROUP if self.kind is KVKind.INT4 else PAGE_UNIT
        return -(-self.head_dim // unit) * unit

    @property
    def half_bytes(self) -> int:
        """Bytes of a page's keys, and of its values."""
        match self.kind:
            case KVKind.F16:
                return self.tokens * self.width * 2
            case KVKind.INT8:
                return self.tokens * (self.width + 4)
            case KVKind.INT4:
                return self.tokens * (self.width // 2 + self.width // NIBBLE_GROUP * 4)

    @property
    def page_bytes(self) -> int:
        return 2 * self.half_bytes

    @property
    def layer_bytes(self) -> int:
        """Bytes of one block in one layer: the pages of its kv heads, one after another."""
        return self.kv_heads * self.page_bytes


class PagesDescriptor(ctypes.Structure):
    """`Pages` of csrc/cpu/layout.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("block_stride", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("blocks", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("width", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True)
class Pages:
    """One layer of a cache. data: uint8 [blocks, layout.layer_bytes], the bytes of a block side by side."""

    layout: PageLayout
    data: torch.Tensor
    descriptor: PagesDescriptor

    @property
    def blocks(self) -> int:
        return self.data.shape[0]

    @staticmethod
    def over(layout: PageLayout, data: torch.Tensor) -> Pages:
        """Raises ValueError, naming the sizes, when `data` is not what the layout needs."""
        if data.dtype is not torch.uint8 or data.dim() != 2 or data.shape[1] != layout.layer_bytes or data.stride(1) != 1:
            raise ValueError(
                f"pages must be uint8 [blocks, {layout.layer_bytes}] with adjacent bytes, got {data.dtype} "
                f"{tuple(data.shape)} with strides {data.stride()}"
            )
        return Pages(
            layout,
            data,
            PagesDescriptor(
                data=data.data_ptr(),
                block_stride=data.stride(0),
                kind=layout.kind.number,
                blocks=data.shape[0],
                block_size=layout.block_size,
                kv_heads=layout.kv_heads,
                width=layout.head_dim,
            ),
        )

    @staticmethod
    def allocate(layout: PageLayout, blocks: int) -> Pages:
        """Pages of a single layer with undefined content."""
        return Pages.over(layout, torch.empty(blocks, layout.layer_bytes, dtype=torch.uint8))
