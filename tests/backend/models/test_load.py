"""What a model file must be, and what is said when it is not."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcode_backend.catalog import CATALOG
from kcode_backend.errors import ModelFileError
from kcode_backend.kernels import native
from kcode_backend.models.load import load
from kcode_backend.weights.gguf import GGUFFile

if TYPE_CHECKING:
    from tests.backend.conftest import TinyModel, WriteTiny


def rewrite(path: Path, *, drop: str = "", rename: dict[str, str] | None = None, add: dict[str, int | str] | None = None) -> Path:
    """A copy of a tiny file without one key or tensor, with renamed tensors or with other keys."""
    source = gguf.GGUFReader(path)
    changed = path.with_name("changed.gguf")
    extra = add or {}
    writer = gguf.GGUFWriter(changed, str(extra.get("general.architecture", "qwen2")))
    for key, entry in source.fields.items():
        if key.startswith("GGUF.") or key in (drop, "general.architecture", *extra):
            continue
        sub_type = entry.types[1] if len(entry.types) > 1 else None
        writer.add_key_value(key, entry.contents(), entry.types[0], sub_type=sub_type)
    for key, value in extra.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32)
    for tensor in source.tensors:
        if tensor.name != drop:
            writer.add_tensor((rename or {}).get(tensor.name, tensor.name), tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return changed


@pytest.mark.parametrize(
    "key",
    [
        "qwen2.block_count",
        "qwen2.context_length",
        "qwen2.embedding_length",
        "qwen2.feed_forward_length",
        "qwen2.attention.head_count",
        "qwen2.attention.layer_norm_rms_epsilon",
        "qwen2.rope.freq_base",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.eos_token_id",
    ],
)
def test_a_missing_key_is_named(tiny: TinyModel, write_tiny: WriteTiny, key: str) -> None:
    path = rewrite(write_tiny(tiny), drop=key)
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: the metadata has no key {key}"


@pytest.mark.parametrize("name", ["token_embd.weight", "output_norm.weight", "blk.0.attn_k.weight", "blk.2.ffn_down.weight"])
def test_a_missing_tensor_is_named(tiny: TinyModel, write_tiny: WriteTiny, name: str) -> None:
    with pytest.raises(ModelFileError, match=f"there is no tensor {name}"):
        load(rewrite(write_tiny(tiny), drop=name))


@pytest.mark.parametrize(
    ("add", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba' is not supported; supported: llama, qwen2"),
        ({"qwen2.embedding_length": 65}, "embedding_length 65 is not a multiple of attention.head_count 4"),
        ({"qwen2.embedding_length": 128}, "token_embd.weight is [270, 64], but there are 270 tokens of 128 dimensions"),
        ({"qwen2.attention.head_count_kv": 3}, "attention.head_count 4 is not a multiple of attention.head_count_kv 3"),
        ({"qwen2.attention.head_count_kv": 4}, "tensor blk.0.attn_k.bias is [32], the configuration asks for [64]"),
        ({"qwen2.attention.value_length": 8}, "keys of 16 and values of 8 dimensions are not supported together"),
        ({"qwen2.block_count": 0}, "qwen2.block_count is 0, not 1 to 16777216"),
        ({"qwen2.block_count": 4}, "there is no tensor blk.3.attn_q.bias"),
        ({"qwen2.block_count": 2}, "tensor blk.2.attn_q.weight is no part of this architecture"),
        ({"qwen2.rope.dimension_count": 18}, "qwen2.rope.dimension_count is 18, not an even number up to the head's 16"),
        ({"qwen2.rope.freq_base": "x"}, "metadata key qwen2.rope.freq_base is 'x', not a number"),
        ({"qwen2.rope.scaling.type": "linear"}, "the metadata has no key qwen2.rope.scaling.factor"),
        (
            {"qwen2.rope.scaling.type": "su", "qwen2.rope.scaling.factor": 2},
            "qwen2.rope.scaling.type is 'su'; supported: none, linear, yarn",
        ),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model is 'llama'; only byte-level BPE"),
        ({"tokenizer.ggml.bos_token_id": 9999}, "the bos token is 9999, but there are 270 tokens"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_named(tiny: TinyModel, write_tiny: WriteTiny, add: dict[str, int | str], message: str) -> None:
    path = rewrite(write_tiny(tiny), add=add)
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_tensor_of_another_architecture_is_refused(tiny: TinyModel, write_tiny: WriteTiny) -> None:
    path = rewrite(write_tiny(tiny), rename={"blk.1.attn_q.bias": "blk.1.attn_q_norm.weight"})
    with pytest.raises(ModelFileError, match=r"there is no tensor blk\.1\.attn_q\.bias"):
        load(path)


def test_a_weight_format_that_cannot_run_is_named(tiny: TinyModel, write_tiny: WriteTiny) -> None:
    path = write_tiny(replace(tiny, quant="MXFP4"))
    with pytest.raises(ModelFileError, match=r"is stored as MXFP4, which is not supported; supported: F32, F16, Q4_0, Q4_1"):
        load(path)


def test_fingerprint_tells_models_apart(tiny: TinyModel, write_tiny: WriteTiny) -> None:
    first = load(write_tiny(tiny))
    again = load(write_tiny(replace(tiny, seed=1)))
    other = load(write_tiny(replace(tiny, seed=2)))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint
    assert int(first.fingerprint, 16) > 0


def test_progress_rises_to_the_total(tiny: TinyModel, write_tiny: WriteTiny) -> None:
    seen: list[tuple[int, int]] = []
    path = write_tiny(tiny)
    load(path, lambda done, total: seen.append((done, total)))
    total = sum(info.size for info in GGUFFile(path).tensors.values())
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)
    assert {known for _, known in seen} == {total}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_header_byte_loads_or_is_refused(tiny: TinyModel, write_tiny: WriteTiny, data: st.DataObject) -> None:
    path = write_tiny(replace(tiny, layers=1))
    content = bytearray(path.read_bytes())
    header = GGUFFile(path).data_start
    position = data.draw(st.integers(0, header - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    damaged = path.with_name("damaged.gguf")
    damaged.write_bytes(content)
    try:
        model = load(damaged)
    except ModelFileError as error:
        message = str(error)
    else:
        message = f"{damaged}: {model.config.layers} layers" if math.isfinite(model.config.rope.theta) else ""
    assert message.startswith(f"{damaged}: ")
    assert "\n" not in message


@pytest.mark.model
def test_a_known_model_with_one_byte_of_its_header_changed_is_named(real_model: Path, tmp_path: Path) -> None:
    """Deep in the vocabulary, where a changed letter is a vocabulary like any other."""
    entry = CATALOG[0]
    damaged = tmp_path / entry.file
    with real_model.open("rb") as whole, damaged.open("wb") as file:
        header = bytearray(whole.read(GGUFFile(real_model).data_start))
        assert hashlib.sha256(header).hexdigest() == entry.header_sha256
        header[1_000_000] ^= 1
        file.write(header)
        # The weights are not read before the header is found wrong.
        file.truncate(entry.bytes)
    with pytest.raises(ModelFileError, match=r"is damaged: its header has .*; remove it and pull qwen2.5-coder-1.5b again"):
        load(damaged)


@pytest.mark.parametrize("damaged", [False, True])
def test_packing_ahead_leaves_nothing_behind(tiny: TinyModel, write_tiny: WriteTiny, damaged: bool) -> None:
    """Neither its thread nor fewer threads for the kernels nor the interpreter's hurry, however the load ends."""
    path = write_tiny(replace(tiny, quant="Q8_0"))
    if damaged:
        path = rewrite(path, rename={"blk.1.ffn_up.weight": "blk.1.ffn_over.weight"})
    kernels = native.active()
    before = (kernels.threads() if kernels else 0, sys.getswitchinterval())
    if damaged:
        with pytest.raises(ModelFileError, match=r"there is no tensor blk\.1\.ffn_up\.weight"):
            load(path)
    else:
        load(path)
    assert (kernels.threads() if kernels else 0, sys.getswitchinterval()) == before
    for thread in threading.enumerate():
        if thread.name.startswith("pack"):
            thread.join(30)
            assert not thread.is_alive()


def test_the_server_packs_before_torch_is_there() -> None:
    """Else packing would not begin while torch is imported."""
    code = "import sys, kcode_backend.server, kcode_backend.weights.ahead; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
