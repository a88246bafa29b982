"""Checkpoints of the Kimi K2 family with random weights, in the published format: for tests, and to measure layers of any size.

Nothing of it is ever in memory at once, and the same shape and seed give the same bytes. This module needs numpy alone.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from kcode_backend.errors import DiskFull, ModelFileError
from kcode_backend.synth_config import Json, SynthShape, config_json, generation_config_json
from kcode_backend.synth_tokens import tokenizer_files

INDEX = "model.safetensors.index.json"
GROUP = 32
NIBBLE_DEVIATION = 3.4
"""Of the integers of a group: the largest of 32 normal numbers is about twice the deviation, and 7 is the largest integer."""
LOGIT_DEVIATION = 2.5
ROUTER_BIAS = 0.01
"""The published biases make experts that are unequally good chosen equally often. Random ones are equally good, and among the
best of hundreds, whose scores are close together, a larger bias would choose the same few for every token."""
HEADER_ALIGNMENT = 8
SPARE_BYTES = 64 << 20
"""Left free on the disk."""

Dtype = Literal["BF16", "F32", "I32", "I64"]
_BYTES: dict[Dtype, int] = {"BF16": 2, "F32": 4, "I32": 4, "I64": 8}
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class SynthTensor:
    """A tensor and what its numbers are: normal with this mean and deviation, or `values`.

    In I32 without values each word is eight INT4 weights around 8.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    deviation: float = 1.0
    mean: float = 0.0
    values: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.elements * _BYTES[self.dtype]


def write(
    folder: Path,
    shape: SynthShape,
    seed: int = 0,
    extra: Sequence[SynthTensor] = (),
    more_config: Mapping[str, Json] | None = None,
) -> None:
    """Writes a checkpoint into a new or empty folder; `extra` and `more_config` are parts that the text model does not have.

    Raises DiskFull with the numbers before anything is written, ModelFileError when the folder has files, OSError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelFileError(f"{folder} exists and is not an empty folder; name another one")
    tensors = [*text_tensors(shape), *extra]
    _check_space(folder, sum(tensor.nbytes for tensor in tensors))
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, shape.shard_bytes)
    numbers = _Numbers(seed)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):06}.safetensors"
        _write_shard(folder / file, shard, numbers)
        weight_map |= {tensor.name: file for tensor in shard}
    total = sum(tensor.nbytes for tensor in tensors)
    files: dict[str, Json] = {
        INDEX: {"metadata": {"total_size": total}, "weight_map": dict(weight_map)},
        "generation_config.json": generation_config_json(shape),
    }
    for name, text in tokenizer_files(shape).items():
        (folder / name).write_bytes(text)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    # Last: a folder without it is no model, so that an interrupted run leaves nothing that looks like one.
    config = config_json(shape) | dict(more_config or {})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def text_tensors(shape: SynthShape) -> Iterator[SynthTensor]:
    """All tensors of the text model in the order of the published files."""
    prefix = "language_model." if shape.is_k25 else ""
    hidden, vocab = shape.hidden, shape.vocab
    yield SynthTensor(f"{prefix}model.embed_tokens.weight", "BF16", (vocab, hidden))
    for layer in range(shape.layers):
        yield from _layer(shape, f"{prefix}model.layers.{layer}.", layer < shape.dense_layers)
    yield _norm(f"{prefix}model.norm", hidden)
    yield SynthTensor(f"{prefix}lm_head.weight", "BF16", (vocab, hidden), LOGIT_DEVIATION * hidden**-0.5)


def _layer(shape: SynthShape, prefix: str, is_dense: bool) -> Iterator[SynthTensor]:
    hidden, attention = shape.hidden, f"{prefix}self_attn."
    key = shape.nope + shape.rope
    yield _norm(f"{prefix}input_layernorm", hidden)
    yield _linear(f"{attention}q_a_proj", shape.q_rank, hidden)
    yield _norm(f"{attention}q_a_layernorm", shape.q_rank)
    yield _linear(f"{attention}q_b_proj", shape.heads * key, shape.q_rank)
    yield _linear(f"{attention}kv_a_proj_with_mqa", shape.kv_rank + shape.rope, hidden)
    yield _norm(f"{attention}kv_a_layernorm", shape.kv_rank)
    yield _linear(f"{attention}kv_b_proj", shape.heads * (shape.nope + shape.value), shape.kv_rank)
    yield _linear(f"{attention}o_proj", hidden, shape.heads * shape.value)
    yield _norm(f"{prefix}post_attention_layernorm", hidden)
    if is_dense:
        yield from _network(f"{prefix}mlp.", hidden, shape.mlp)
        return
    yield _linear(f"{prefix}mlp.gate", shape.experts, hidden)
    yield SynthTensor(f"{prefix}mlp.gate.e_score_correction_bias", "F32", (shape.experts,), ROUTER_BIAS)
    for expert in range(shape.experts):
        sizes = {
            "gate_proj": (shape.expert_mlp, hidden),
            "up_proj": (shape.expert_mlp, hidden),
            "down_proj": (hidden, shape.expert_mlp),
        }
        for part, (rows, columns) in sizes.items():
            yield from _int4(f"{prefix}mlp.experts.{expert}.{part}", rows, columns, shape.shape_dtype)
    if shape.shared_experts:
        yield from _network(f"{prefix}mlp.shared_experts.", hidden, shape.expert_mlp * shape.shared_experts)


def _network(prefix: str, hidden: int, inner: int) -> Iterator[SynthTensor]:
    yield _linear(f"{prefix}gate_proj", inner, hidden)
    yield _linear(f"{prefix}up_proj", inner, hidden)
    yield _linear(f"{prefix}down_proj", hidden, inner)


def _norm(name: str, width: int) -> SynthTensor:
    return SynthTensor(f"{name}.weight", "BF16", (width,), 0.1, 1.0)


def _linear(name: str, rows: int, columns: int) -> SynthTensor:
    """Keeps the size of what it multiplies."""
    return SynthTensor(f"{name}.weight", "BF16", (rows, columns), columns**-0.5)


def _int4(name: str, rows: int, columns: int, shape_dtype: Literal["I32", "I64"]) -> Iterator[SynthTensor]:
    scale = columns**-0.5 / NIBBLE_DEVIATION
    yield SynthTensor(f"{name}.weight_packed", "I32", (rows, columns // 8))
    yield SynthTensor(f"{name}.weight_scale", "BF16", (rows, columns // GROUP), scale / 10, scale)
    yield SynthTensor(f"{name}.weight_shape", shape_dtype, (2,), values=(rows, columns))


def _check_space(folder: Path, needed: int) -> None:
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if needed + SPARE_BYTES > free:
        raise DiskFull(
            f"the model has {needed / 1e9:.2f} GB, but {parent} has {free / 1e9:.2f} GB free; "
            "fewer layers or experts, or a smaller hidden size, make it smaller"
        )


def _shards(tensors: Sequence[SynthTensor], limit: int) -> list[list[SynthTensor]]:
    shards: list[list[SynthTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def header_of(tensors: Sequence[SynthTensor]) -> bytes:
    """How a file of these tensors begins; their data follow in this order."""
    entries: dict[str, Json] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % HEADER_ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _write_shard(path: Path, tensors: Sequence[SynthTensor], numbers: _Numbers) -> None:
    with path.open("wb") as file:
        file.write(header_of(tensors))
        for tensor in tensors:
            numbers.write(tensor, file)


class _Numbers:
    """The numbers of a seed. A tensor's depend on its name and not on what else is written."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        normal = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)
        self._normal = normal / normal.std()
        low, high = (np.clip(np.rint(part * NIBBLE_DEVIATION), -8, 7) + 8 for part in (self._normal, np.roll(self._normal, 1)))
        self._pairs = (low.astype(np.uint8) | high.astype(np.uint8) << 4).astype(np.uint8)

    def write(self, tensor: SynthTensor, file: BinaryIO) -> None:
        if tensor.values:
            file.write(np.asarray(tensor.values, dtype=np.int32 if tensor.dtype == "I32" else np.int64).tobytes())
            return
        source = np.random.SFC64([self._seed, zlib.crc32(tensor.name.encode())])
        table = self._table(tensor)
        picks = tensor.nbytes // table.itemsize
        for first in range(0, picks, _CHUNK):
            count = min(_CHUNK, picks - first)
            chosen = source.random_raw(-(-count // 4)).view(np.uint16)[:count]
            file.write(table[chosen].tobytes())

    def _table(self, tensor: SynthTensor) -> NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]:
        """What 16 random bits stand for."""
        if tensor.dtype == "I32":
            return self._pairs
        values = self._normal * np.float32(tensor.deviation) + np.float32(tensor.mean)
        return values if tensor.dtype == "F32" else bfloat16(values)


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even; `values` are finite."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
