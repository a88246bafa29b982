"""Experts that do not all fit into memory give the numbers of those that do, whatever is read, kept and given up."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kcode_backend import synth
from kcode_backend.errors import ModelFileError
from kcode_backend.kernels import native, ops, packed
from kcode_backend.kernels.packed import PackedExperts
from kcode_backend.kernels.placed import ExpertLayout
from kcode_backend.layers.stored import StoredExperts
from kcode_backend.synth_config import SynthShape
from kcode_backend.weights.expert_store import ExpertMemory, ExpertStore, StoredLayer
from kcode_backend.weights.quant import QuantFormat
from kcode_backend.weights.reader import WeightReader
from kcode_backend.weights.safetensors import SafetensorsFolder

SHAPE = SynthShape(layers=3, experts=24, used=4, hidden=128, expert_mlp=96)
LAYERS = (1, 2)
PARTS = (("gate", 96, 128), ("up", 96, 128), ("down", 128, 96))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "model"
    synth.write(path, SHAPE)
    return path


def resident(folder: Path, layer: int) -> PackedExperts:
    reader = WeightReader(SafetensorsFolder(folder))
    gates, ups, downs = (
        reader.expert_matrices(f"blk.{layer}.ffn_{part}_exps", SHAPE.experts, rows, columns) for part, rows, columns in PARTS
    )
    return packed.experts(gates, ups, downs)


def open_store(folder: Path, slots: float, counts_folder: Path | None = None) -> tuple[ExpertStore, list[StoredExperts]]:
    """Room for `slots` experts."""
    reader = WeightReader(SafetensorsFolder(folder))
    layout = ExpertLayout(128, 96, (QuantFormat.INT4, QuantFormat.INT4, QuantFormat.INT4))
    store = ExpertStore(ExpertMemory(counts_folder=counts_folder), int(slots * layout.nbytes))
    layers: list[StoredExperts] = []
    for layer in LAYERS:
        found = [reader.expert_places(f"blk.{layer}.ffn_{part}_exps", SHAPE.experts, *sizes) for part, *sizes in PARTS]
        assert {quant for quant, _ in found} == {QuantFormat.INT4}
        places = tuple(zip(*(places for _, places in found), strict=True))
        layers.append(StoredExperts(store, store.add(StoredLayer(layer, layout, places))))
    store.open("0123")
    return store, layers


def routed(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 128, generator=generator)
    weights, ids = torch.rand(rows, SHAPE.experts, generator=generator).topk(SHAPE.used)
    return x, ids.int().contiguous(), weights.contiguous()


@pytest.mark.parametrize("slots", [2, 3, 7, 24, 48])
@pytest.mark.parametrize("compiled", [True, False])
def test_results_are_equal_to_the_bit_however_few_experts_fit(folder: Path, slots: int, compiled: bool) -> None:
    with native.using(native.active() if compiled else None):
        whole = [resident(folder, layer) for layer in LAYERS]
        store, stored = open_store(folder, slots)
        for seed, rows in enumerate((1, 1, 1, 5, 60, 2, 1)):
            x, ids, weights = routed(rows, seed)
            for layer, experts in enumerate(whole):
                assert torch.equal(stored[layer].forward(x, ids, weights), ops.moe(x, experts, ids, weights))
        store.close()
    chosen = store.traffic.hits + store.traffic.misses
    assert store.traffic.misses >= 24
    assert store.traffic.read_bytes == store.traffic.misses * 3 * 96 * 128 * 18 // 32
    assert (store.traffic.misses == chosen) == (store.traffic.hit_rate == 0.0)


def test_all_experts_that_fit_are_read_once(folder: Path) -> None:
    store, stored = open_store(folder, 48)
    for seed in range(4):
        for layer in stored:
            layer.forward(*routed(60, seed))
    assert (store.traffic.misses, store.traffic.hits) == (48, 3 * 48)


def test_a_long_prompt_in_parts_keeps_what_fits(folder: Path) -> None:
    # Each part goes through all 48 experts; giving up the least recently used of 24 slots would never find one.
    store, stored = open_store(folder, 24)
    for seed in range(12):
        for layer in stored:
            layer.forward(*routed(60, seed))
    assert store.traffic.hit_rate > 0.25


def test_experts_that_are_chosen_often_stay(folder: Path) -> None:
    store, stored = open_store(folder, 8)
    often, weights = torch.tensor([[1, 5, 9, 20]], dtype=torch.int32), torch.full((1, 4), 0.25)
    x = torch.randn(1, 128)
    for seed in range(30):
        _, seldom, _ = routed(1, seed)
        stored[0].forward(x, often, weights)
        stored[1].forward(x, seldom, weights)
    before = store.traffic.misses
    stored[0].forward(x, often, weights)
    assert store.traffic.misses == before


def test_what_was_chosen_often_is_remembered(folder: Path, tmp_path: Path) -> None:
    store, stored = open_store(folder, 8, tmp_path / "counts")
    often, weights = torch.tensor([[1, 5, 9, 20]], dtype=torch.int32), torch.full((1, 4), 0.25)
    x = torch.randn(1, 128)
    for _ in range(20):
        stored[0].forward(x, often, weights)
    store.close()
    again, stored = open_store(folder, 8, tmp_path / "counts")
    assert np.flatnonzero(again.residency.counts()[0] > 10).tolist() == [1, 5, 9, 20]
    (tmp_path / "counts" / "0123.npy").write_bytes(b"\x93NUMPY damaged")
    store, _ = open_store(folder, 8, tmp_path / "counts")
    assert not store.residency.counts().any()


def test_too_little_memory_is_refused_with_the_numbers(folder: Path) -> None:
    with pytest.raises(
        ModelFileError, match=r"hold 1 of 48 experts of 0\.0 MB; at least 2 have to fit: give more \(expert_ram_gb in"
    ):
        open_store(folder, 1.5)


LOCKING = """
import os, resource
import numpy as np
from kcode_backend.weights.expert_store import lock
if os.geteuid() == 0:
    os.setuid(65534)  # the administrator may lock any memory
resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
lock(np.zeros(1 << 20, dtype=np.uint8))
"""


def test_memory_that_may_not_be_locked_is_refused_with_the_limit() -> None:
    run = subprocess.run([sys.executable, "-c", LOCKING], capture_output=True, text=True, timeout=120, check=False)
    assert "ModelFileError: 0.00 GB of memory cannot be locked: Cannot allocate memory, with a limit of 0.000 GB" in run.stderr


def test_a_file_that_is_cut_off_while_in_use_is_an_error_and_the_next_pass_works(tmp_path: Path) -> None:
    shape = replace(SHAPE, shard_bytes=1 << 30)
    synth.write(tmp_path / "model", shape)
    (file,) = (tmp_path / "model").glob("*.safetensors")
    store, stored = open_store(tmp_path / "model", 6)
    x, _, weights = routed(1, 0)
    first, last = torch.arange(4, dtype=torch.int32)[None], torch.arange(20, 24, dtype=torch.int32)[None]
    expected = stored[0].forward(x, first, weights)
    content = file.read_bytes()
    end = store.place(1, 20)[0].data.start
    os.truncate(file, end)
    with pytest.raises(ModelFileError, match=rf"{file}: the file was cut off while in use: it ends at byte {end}, an expert at"):
        stored[1].forward(x, last, weights)
    assert torch.equal(stored[0].forward(x, first, weights), expected)
    file.write_bytes(content)
    assert torch.equal(stored[1].forward(x, last, weights), ops.moe(x, resident(tmp_path / "model", 2), last, weights))


def test_scales_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    synth.write(tmp_path / "model", SHAPE)
    opened = SafetensorsFolder(tmp_path / "model")
    name = "blk.2.ffn_up_exps.7.weight_scale"
    with opened.file_of(name).open("r+b") as file:
        file.seek(opened.tensors[name].start + 2 * 5)
        file.write(b"\xc0\x7f")
    store, stored = open_store(tmp_path / "model", 6)
    x, _, weights = routed(1, 0)
    with pytest.raises(ModelFileError) as error:
        stored[1].forward(x, torch.tensor([[2, 3, 7, 8]], dtype=torch.int32), weights)
    expected = (
        f"{opened.file_of(name)}: scale 5 of blk.2.ffn_up_exps.7.weight is not a number; the file is damaged, fetch it again"
    )
    assert str(error.value) == expected
    stored[1].forward(x, torch.tensor([[2, 3, 6, 8]], dtype=torch.int32), weights)
    store.close()
