"""Models for the tests of the engine: tiny random ones, written on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import pytest

MERGES = (("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("o", "r"), ("Ġw", "or"), ("l", "d"), ("Ġwor", "ld"))
SPECIAL = {"<|endoftext|>": 3, "<|im_start|>": 3, "<|im_end|>": 3, "<tool_call>": 4, "</tool_call>": 4}


@dataclass(frozen=True)
class TinyModel:
    """A random model of a few layers; everything that a test may want to vary."""

    architecture: str = "qwen2"
    quant: str = "F32"
    layers: int = 3
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 96
    context: int = 512
    theta: float = 10000.0
    tied: bool = False
    pre: str = "qwen2"
    rope_factors: tuple[float, ...] = ()
    attention_scale: float = 1.0
    """What q and k are multiplied by: with a large one a token attends to few others, wherever they are."""
    extra: Mapping[str, float | int | str] = field(default_factory=dict)
    seed: int = 1

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@pytest.fixture
def tiny() -> TinyModel:
    """The model that tests vary with dataclasses.replace."""
    return TinyModel()


WriteTiny = Callable[[TinyModel], Path]


@pytest.fixture
def write_tiny(tmp_path: Path) -> WriteTiny:
    """Writes a TinyModel as a GGUF file in the test's folder, with gguf's own writer."""

    def write(tiny: TinyModel) -> Path:
        path = tmp_path / f"{tiny.architecture}-{tiny.quant}-{tiny.seed}.gguf"
        writer = gguf.GGUFWriter(path, tiny.architecture)
        _write_keys(writer, tiny)
        _write_vocabulary(writer, tiny.pre)
        for name, values in tiny_tensors(tiny).items():
            _write_tensor(writer, name, values, tiny.quant)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def tiny_vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, types and merges: all bytes, a few merges, the special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [chr(byte) for byte in printable] + others + [left + right for left, right in MERGES]
    kinds = [1] * len(tokens) + list(SPECIAL.values())
    return tokens + list(SPECIAL), kinds, [f"{left} {right}" for left, right in MERGES]


def _write_vocabulary(writer: gguf.GGUFWriter, pre: str) -> None:
    tokens, kinds, merges = tiny_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    )


def _write_keys(writer: gguf.GGUFWriter, tiny: TinyModel) -> None:
    writer.add_name("tiny")
    writer.add_block_count(tiny.layers)
    writer.add_context_length(tiny.context)
    writer.add_embedding_length(tiny.hidden)
    writer.add_feed_forward_length(tiny.mlp)
    writer.add_head_count(tiny.heads)
    writer.add_head_count_kv(tiny.kv_heads)
    writer.add_rope_freq_base(tiny.theta)
    writer.add_layer_norm_rms_eps(1e-6)
    for name, value in tiny.extra.items():
        key = f"{tiny.architecture}.{name}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_float32(key, value)


def tiny_tensors(tiny: TinyModel) -> dict[str, np.ndarray]:
    """GGUF names and float32 values; equal for equal models."""
    rng = np.random.default_rng(tiny.seed)
    vocab, kv_width = len(tiny_vocabulary()[0]), tiny.kv_heads * tiny.head_dim
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int, scale: float = 0.15, mean: float = 0.0) -> None:
        tensors[name] = (rng.standard_normal(shape) * scale + mean).astype(np.float32)

    add("token_embd.weight", vocab, tiny.hidden, scale=1.0)
    add("output_norm.weight", tiny.hidden, mean=1.0)
    if not tiny.tied:
        add("output.weight", vocab, tiny.hidden)
    if tiny.rope_factors:
        tensors["rope_freqs.weight"] = np.asarray(tiny.rope_factors, dtype=np.float32)
    for layer in range(tiny.layers):
        for part, width in (("attn_q", tiny.hidden), ("attn_k", kv_width), ("attn_v", kv_width)):
            factor = 1.0 if part == "attn_v" else tiny.attention_scale
            add(f"blk.{layer}.{part}.weight", width, tiny.hidden, scale=0.15 * factor)
            if tiny.architecture == "qwen2":
                add(f"blk.{layer}.{part}.bias", width, scale=0.5 * factor)
        add(f"blk.{layer}.attn_output.weight", tiny.hidden, tiny.hidden)
        add(f"blk.{layer}.attn_norm.weight", tiny.hidden, mean=1.0)
        add(f"blk.{layer}.ffn_norm.weight", tiny.hidden, mean=1.0)
        add(f"blk.{layer}.ffn_gate.weight", tiny.mlp, tiny.hidden)
        add(f"blk.{layer}.ffn_up.weight", tiny.mlp, tiny.hidden)
        add(f"blk.{layer}.ffn_down.weight", tiny.hidden, tiny.mlp)
    return tensors


def _write_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, quant: str) -> None:
    kind = gguf.GGMLQuantizationType[quant]
    if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
