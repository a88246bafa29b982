"""What a plan needs to know of a model's files and of the machine, without loading anything. This module imports no torch."""

from __future__ import annotations

import itertools
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from kcode_backend.config_gguf import read_config
from kcode_backend.config_json import read_config_json, read_json
from kcode_backend.errors import ModelFileError
from kcode_backend.kernels import native
from kcode_backend.kernels.packing import pack_into
from kcode_backend.plan import Footprint, footprint_of, footprint_of_total
from kcode_backend.residency import counts_file, expected_hits, read_counts
from kcode_backend.weights.checkpoint import TensorInfo, TensorType, naming
from kcode_backend.weights.compressed import read_quantization
from kcode_backend.weights.fingerprint import fingerprint
from kcode_backend.weights.gguf import GGUFFile
from kcode_backend.weights.names import from_transformers
from kcode_backend.weights.quant import QuantFormat
from kcode_backend.weights.safetensors import INDEX, SafetensorsFolder

PROBE_BYTES = 256 << 20
READ_BYTES = 16 << 20
READERS = 4
PROBE_S = 0.5


class _Metadata(BaseModel):
    total_size: int


class _Index(BaseModel):
    metadata: _Metadata
    weight_map: dict[str, str]


def read_footprint(path: Path, kind: str = "f16") -> Footprint:
    """Of a GGUF file, a folder of safetensors, or config.json and the index of one. ModelFileError."""
    if not path.is_dir():
        file = GGUFFile(path)
        with naming(path):
            return footprint_of(read_config(file.metadata, file.tensors), file.tensors, kind)
    if any(path.glob("*.safetensors")):
        folder = SafetensorsFolder(path)
        with naming(path / "config.json"):
            stated = read_json(path / "config.json")
            return footprint_of(read_config_json(stated, folder.tensors, path.resolve().name), folder.tensors, kind)
    with naming(path / INDEX):
        try:
            index = _Index.model_validate_json((path / INDEX).read_bytes())
        except FileNotFoundError as error:
            raise ModelFileError("is missing, and so are the tensors; a plan needs it and config.json") from error
        except ValidationError as error:
            raise ModelFileError(f"is no index with a total_size: {error.errors()[0]['msg']}") from error
    with naming(path / "config.json"):
        stated = read_json(path / "config.json")
        unknown = TensorType("unknown", 1, 0)
        named = {from_transformers(name): TensorInfo(name, (), unknown, 0, 0) for name in index.weight_map}
        config = read_config_json(stated, named, path.resolve().name)
        return footprint_of_total(config, index.metadata.total_size, read_quantization(stated) is not None, kind)


def read_hits(path: Path, model: Footprint, counts_folder: Path) -> Callable[[int], float] | None:
    """The share of choices that so many experts in memory serve, by those counted in earlier runs; None when there were none.

    ModelFileError.
    """
    if not model.all_experts or (path.is_dir() and not any(path.glob("*.safetensors"))):
        return None
    mark = fingerprint(SafetensorsFolder(path) if path.is_dir() else GGUFFile(path))
    counts = read_counts(counts_file(counts_folder, mark), model.layers, model.experts)
    return None if counts is None or not counts.any() else partial(expected_hits, counts)


def memory_speed() -> float:
    """Bytes a second at which the kernels' threads read memory; 0 without compiled kernels."""
    kernels = native.active()
    if kernels is None:
        return 0.0
    data = np.ones(PROBE_BYTES, dtype=np.uint8)
    return PROBE_BYTES / _best_s(lambda: kernels.library.kc_read_probe(data.ctypes.data, data.size))


def pack_speed() -> float:
    """Bytes of INT4 experts a second that are put into the kernels' order; 0 without compiled kernels."""
    kernels = native.active()
    if kernels is None:
        return 0.0
    rows, columns = 2048, 7168
    nibbles, scales = np.zeros(rows * columns // 2, dtype=np.uint8), np.zeros(rows * columns // 16, dtype=np.uint8)
    target = kernels.pack(QuantFormat.INT4, nibbles, rows, columns, scales)
    return target.size / _best_s(lambda: pack_into(kernels, QuantFormat.INT4, nibbles, scales, (rows, columns), target))


def multiply_speed() -> float:
    """Multiply-adds a second from registers; 0 without compiled kernels."""
    kernels = native.active()
    if kernels is None:
        return 0.0
    repetitions = 1 << 16
    operations = 96 * kernels.lanes * repetitions * kernels.threads()
    return operations / _best_s(lambda: kernels.library.kc_multiply_probe(kernels.number, repetitions))


def disk_speed(path: Path) -> float:
    """Bytes a second at which experts come from the model's files, past the page cache; 0 when there is nothing to read."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    largest = max(files, key=lambda file: file.stat().st_size, default=None)
    if largest is None or largest.stat().st_size < READ_BYTES * READERS:
        return 0.0
    try:
        descriptor = os.open(largest, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError:
        descriptor = os.open(largest, os.O_RDONLY)
    places = itertools.cycle(range(0, largest.stat().st_size - READ_BYTES, READ_BYTES * 7))
    started = time.monotonic()

    def read() -> int:
        done, buffer = 0, mmap.mmap(-1, READ_BYTES)
        while time.monotonic() - started < PROBE_S:
            done += os.preadv(descriptor, [buffer], next(places))
        return done

    try:
        with ThreadPoolExecutor(READERS) as pool:
            total = sum(reader.result() for reader in [pool.submit(read) for _ in range(READERS)])
    finally:
        os.close(descriptor)
    return total / (time.monotonic() - started)


def _best_s(work: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(4):
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return min(times)
