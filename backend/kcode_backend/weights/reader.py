"""Tensors of a model file in the form the layers want: checked against the configuration and packed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kcode_backend.errors import ModelFileError
from kcode_backend.kernels import packed
from kcode_backend.kernels.packed import PackedWeight
from kcode_backend.weights.gguf import GGUFFile, TensorInfo
from kcode_backend.weights.quant import QuantFormat

LoadProgress = Callable[[int, int], None]
"""Called with the bytes of weights done and in all."""

_VECTOR_DTYPES = {"F32": np.float32, "F16": np.float16}


class WeightReader:
    """Hands out each tensor once and knows at the end which ones nobody asked for."""

    def __init__(self, file: GGUFFile, on_progress: LoadProgress | None = None) -> None:
        self._file = file
        self._on_progress = on_progress
        self._unread = dict(file.tensors)
        self._done = 0
        self._total = sum(info.size for info in file.tensors.values())

    def has(self, name: str) -> bool:
        return name in self._file.tensors

    def matrix(self, name: str, rows: int, columns: int) -> PackedWeight:
        """The weight `name` of [rows, columns]; ModelFileError when it is missing, of another shape or an unknown format."""
        info = self._take(name, (rows, columns))
        if info.type.name not in QuantFormat.__members__:
            known = ", ".join(QuantFormat.__members__)
            raise ModelFileError(f"tensor {name} is stored as {info.type.name}, which is not supported; supported: {known}")
        weight = packed.pack(QuantFormat[info.type.name], self._file.data(name), (rows, columns))
        # The packed copy is the one that counts; the pages of the file would double the process's memory.
        self._file.release(name)
        self._advance(info)
        return weight

    def stacked(self, parts: Sequence[tuple[str, int]], columns: int) -> PackedWeight:
        """Several weights [rows, columns] as one whose outputs lie side by side, in the given order."""
        return packed.stack([self.matrix(name, rows, columns) for name, rows in parts])

    def vector(self, name: str, size: int) -> Tensor:
        """float32 [size], a copy."""
        info = self._take(name, (size,))
        dtype = _VECTOR_DTYPES.get(info.type.name)
        if dtype is None:
            raise ModelFileError(f"tensor {name} is stored as {info.type.name}; vectors must be {' or '.join(_VECTOR_DTYPES)}")
        values = self._file.data(name).view(dtype).astype(np.float32)
        self._advance(info)
        return torch.from_numpy(values)

    def finish(self) -> None:
        """ModelFileError when the file has tensors that were not asked for: it is a model of another kind than it says."""
        if self._unread:
            first = next(iter(self._unread))
            raise ModelFileError(f"tensor {first} is no part of this architecture ({len(self._unread)} such tensors)")

    def _take(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self._unread.pop(name, None)
        if info is None:
            raise ModelFileError(f"there is no tensor {name}")
        if info.shape != shape:
            raise ModelFileError(f"tensor {name} is {list(info.shape)}, the configuration asks for {list(shape)}")
        return info

    def _advance(self, info: TensorInfo) -> None:
        self._done += info.size
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)
