"""Tiny random models against transformers, and what must not depend on how the work is cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import torch

from kcode_backend.kernels import native
from kcode_backend.kernels.pages import KVKind
from kcode_backend.kv.cache import KVCache, bytes_per_block
from kcode_backend.models.batch import Batch
from kcode_backend.models.load import load
from kcode_backend.models.model import Model

if TYPE_CHECKING:
    from tests.backend.conftest import TinyModel, WriteTiny

BLOCK = 4
TOKENS = torch.tensor(np.random.default_rng(7).integers(0, 250, 48))


@dataclass
class Sequences:
    """Runs sequences through a model over a cache whose blocks are handed out in a shuffled order."""

    model: Model
    kind: KVKind = KVKind.F16
    kv: KVCache = field(init=False)
    blocks: list[int] = field(init=False)
    tables: dict[int, list[int]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kv = KVCache.allocate(self.model.config, 64, BLOCK, self.kind)
        self.blocks = np.random.default_rng(3).permutation(64).tolist()

    def step(self, new: Mapping[int, Sequence[int]], rows: Sequence[int] | None = None) -> torch.Tensor:
        """Feeds new tokens of some sequences; logits of `rows` of all new tokens, by default of all."""
        ids, positions, slots, starts = [], [], [], [0]
        for sequence, tokens in new.items():
            table, length = self.tables.setdefault(sequence, []), self.lengths.get(sequence, 0)
            while len(table) * BLOCK < length + len(tokens):
                table.append(self.blocks.pop())
            where = range(length, length + len(tokens))
            ids += [int(token) for token in tokens]
            positions += where
            slots += [table[position // BLOCK] * BLOCK + position % BLOCK for position in where]
            starts.append(len(ids))
            self.lengths[sequence] = length + len(tokens)
        width = max(len(self.tables[sequence]) for sequence in new)
        tables = [self.tables[sequence] + [0] * (width - len(self.tables[sequence])) for sequence in new]
        batch = Batch(
            token_ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            seq_starts=torch.tensor(starts, dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            context_lens=torch.tensor([self.lengths[sequence] for sequence in new], dtype=torch.int32),
            logit_rows=torch.arange(len(ids)) if rows is None else torch.tensor(rows, dtype=torch.int64),
        )
        return self.model.forward(batch, self.kv)


PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def transformers_state(path: Path, tiny: TinyModel) -> dict[str, torch.Tensor]:
    """The file's tensors, dequantised by gguf, under transformers' names and in its order of rows."""
    state: dict[str, torch.Tensor] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        name, _, kind = tensor.name.rpartition(".")
        if name == "rope_freqs":
            continue
        if not name.startswith("blk."):
            state[f"{OTHERS[name]}.{kind}"] = torch.tensor(values)
            continue
        _, layer, part = name.split(".")
        if tiny.architecture == "llama" and part in ("attn_q", "attn_k"):
            # llama files hold the rows of a head as pairs; transformers has the first halves, then the second.
            values = values.reshape(-1, tiny.head_dim // 2, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        state[f"model.layers.{layer}.{PARTS[part]}.{kind}"] = torch.tensor(values)
    return state


def transformers_logits(path: Path, tiny: TinyModel, rope: Mapping[str, float | str]) -> torch.Tensor:
    transformers = pytest.importorskip("transformers", reason="the oracle of whole models is transformers")
    names = {"qwen2": ("Qwen2Config", "Qwen2ForCausalLM"), "llama": ("LlamaConfig", "LlamaForCausalLM")}
    config_class, model_class = (getattr(transformers, name) for name in names[tiny.architecture])
    state = transformers_state(path, tiny)
    config = config_class(
        vocab_size=state["model.embed_tokens.weight"].shape[0],
        hidden_size=tiny.hidden,
        intermediate_size=tiny.mlp,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        num_key_value_heads=tiny.kv_heads,
        max_position_embeddings=tiny.context,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tiny.tied,
        rope_parameters={"rope_type": "default", "rope_theta": tiny.theta, **rope},
        attn_implementation="eager",
    )
    model = model_class(config).eval()
    if tiny.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    with torch.no_grad():
        return model(TOKENS[None]).logits[0]


def llama3_factors(tiny: TinyModel) -> tuple[float, ...]:
    """What the published conversion writes for factor 8, low 1, high 4 and an original context of 32."""
    factors = []
    for i in range(0, tiny.head_dim, 2):
        wavelength = 2 * math.pi * tiny.theta ** (i / tiny.head_dim)
        if wavelength < 32 / 4:
            factors.append(1.0)
        elif wavelength > 32 / 1:
            factors.append(8.0)
        else:
            smooth = (32 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 8 + smooth))
    return tuple(factors)


PLAIN: dict[str, float | str] = {}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LINEAR_KEYS = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}


@pytest.mark.parametrize(
    ("change", "rope"),
    [
        ({}, PLAIN),
        ({"quant": "F16"}, PLAIN),
        ({"quant": "Q8_0"}, PLAIN),
        ({"tied": True, "kv_heads": 1}, PLAIN),
        ({"heads": 8, "kv_heads": 8, "theta": 1e6}, PLAIN),
        ({"extra": YARN_KEYS}, YARN),
        ({"architecture": "llama"}, PLAIN),
        ({"architecture": "llama", "quant": "Q8_0", "tied": True}, PLAIN),
        ({"architecture": "llama", "extra": LINEAR_KEYS}, LINEAR),
        ({"architecture": "llama", "rope_factors": "llama3"}, LLAMA3),
    ],
    ids=["qwen2", "f16", "q8_0", "tied-mqa", "mha", "yarn", "llama", "llama-q8_0", "linear", "llama3"],
)
def test_logits_are_those_of_transformers(
    tiny: TinyModel, write_tiny: WriteTiny, change: dict[str, int], rope: Mapping[str, float | str]
) -> None:
    tiny = replace(tiny, **change)
    if tiny.rope_factors:
        tiny = replace(tiny, rope_factors=llama3_factors(tiny))
    path = write_tiny(tiny)
    expected = transformers_logits(path, tiny, rope)
    with native.using(None):
        # The reference computes in float32 throughout; only keys and values are rounded, to float16.
        actual = Sequences(load(path)).step({0: TOKENS})
    assert (actual - expected).abs().max() < 1e-3 * expected.abs().max()
    compiled = Sequences(load(path)).step({0: TOKENS})
    # The compiled kernels multiply quantised weights by activations rounded to 8 bits.
    assert (compiled - expected).abs().max() < (0.05 if tiny.quant == "Q8_0" else plain_tolerance(1e-3)) * expected.abs().max()


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """To the bit: the compiled kernels add up a row in one order, whatever is computed with it. The reference uses torch's, and
    AMX rounds to bfloat16 from 32 rows on."""
    kernels = native.active()
    if kernels is None or kernels.isa == "amx":
        atol = 1e-4 if kernels is None else float(plain_tolerance(0) * expected.abs().max())
        torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
    else:
        assert torch.equal(actual, expected)


def plain_tolerance(otherwise: float) -> float:
    """Of the largest logit, for weights that are not quantised: in bfloat16 two layers are about 1 % off."""
    kernels = native.active()
    return 0.03 if kernels is not None and kernels.isa == "amx" else otherwise


@pytest.fixture(params=["qwen2", "llama"])
def model(request: pytest.FixtureRequest, tiny: TinyModel, write_tiny: WriteTiny) -> Model:
    return load(write_tiny(replace(tiny, architecture=request.param)))


@pytest.mark.parametrize("chunk", [1, 3, 4, 17])
def test_chunked_prefill_gives_the_same_logits(model: Model, chunk: int) -> None:
    whole = Sequences(model).step({0: TOKENS})
    sequences = Sequences(model)
    parts = [sequences.step({0: TOKENS[start : start + chunk]}) for start in range(0, len(TOKENS), chunk)]
    assert_same(torch.cat(parts), whole)


def test_a_batch_gives_what_each_sequence_gives_alone(model: Model) -> None:
    first, second, third = TOKENS[:20], TOKENS[20:33], TOKENS[33:40]
    alone = [Sequences(model).step({0: tokens}) for tokens in (first, second, third)]
    together = Sequences(model)
    one = together.step({0: first[:7], 1: second[:12]})
    two = together.step({1: second[12:], 2: third, 0: first[7:]})
    assert_same(torch.cat((one[:7], two[8:])), alone[0])
    assert_same(torch.cat((one[7:], two[:1])), alone[1])
    assert_same(two[1:8], alone[2])


def test_only_wanted_rows_are_returned(model: Model) -> None:
    whole = Sequences(model).step({0: TOKENS})
    some = Sequences(model).step({0: TOKENS}, rows=[47, 3])
    assert_same(some, whole[[47, 3]])


def test_a_chunk_without_wanted_rows_still_fills_the_cache(model: Model) -> None:
    whole = Sequences(model).step({0: TOKENS})
    sequences = Sequences(model)
    assert sequences.step({0: TOKENS[:40]}, rows=[]).shape == (0, model.config.vocab)
    assert_same(sequences.step({0: TOKENS[40:]}), whole[40:])


@pytest.mark.parametrize(("kind", "tolerance"), [(KVKind.INT8, 0.02), (KVKind.INT4, 0.3)])
def test_a_quantised_cache_says_nearly_the_same(model: Model, kind: KVKind, tolerance: float) -> None:
    """tolerance: of the logits' standard deviation, for their root mean square error."""
    whole = Sequences(model).step({0: TOKENS})
    quantised = Sequences(model, kind)
    parts = [quantised.step({0: TOKENS[start:end]}) for start, end in ((0, 30), (30, 31), (31, 48))]
    error = float((torch.cat(parts) - whole).square().mean().sqrt() / whole.std())
    assert 0 < error < tolerance
    assert quantised.kv.block_bytes < Sequences(model).kv.block_bytes


def test_cache_bytes_per_block(model: Model) -> None:
    kv = KVCache.allocate(model.config, blocks=3, block_size=BLOCK)
    assert kv.block_bytes == bytes_per_block(model.config, BLOCK)
