"""The default model against what llama.cpp and a float32 forward pass predicted for 512 tokens of a fixed text.

Measured on 2026-11-22 with the AVX2 kernels over all 512 positions and the whole vocabulary:

- kcode to llama.cpp 0.3.36, without position 0: KL 1.3e-3; same first choice 99.0 % (507 of 512; 508 with another order of
  summation). Four of the five differences are near ties: the first choice of llama.cpp leads by less than 0.12. The fifth is
  position 0.
- To the float32 pass, without position 0: kcode KL 2.3e-4, first choice 99.4 % (98.8 % with the other order of summation);
  llama.cpp KL 1.2e-3, first choice 99.2 %.
- At position 0 one channel is so large that rounding activations to 8 bits per 256 columns, as llama.cpp does, loses the others:
  there llama.cpp is 5.6 away from float32. A scale per 32 columns leaves kcode 0.27 away, so they are 4.0 from each other: that
  one position is 7.9e-3 of the mean over all. With float32 activations (the torch reference) kcode is 3.4e-6 away from the
  float32 pass, position 0 included, and every first choice agrees.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kcode_backend.kernels.native import describe
from kcode_backend.kv.cache import KVCache
from kcode_backend.models.batch import Batch
from kcode_backend.models.load import load
from kcode_backend.models.model import Model

DATA = Path(__file__).resolve().parents[2] / "data" / "logits"
CHUNK = 128


@pytest.fixture(scope="module")
def model(real_model: Path) -> Model:
    return load(real_model)


@pytest.fixture(scope="module")
def logprobs(model: Model) -> torch.Tensor:
    """float64 [512, vocab], computed in four chunks."""
    ids = torch.from_numpy(np.load(DATA / "llama_cpp.npz")["ids"].astype(np.int64))
    kv = KVCache.allocate(model.config, blocks=len(ids) // 16, block_size=16)
    parts = [forward_chunk(model, kv, ids, start) for start in range(0, len(ids), CHUNK)]
    return torch.log_softmax(torch.cat(parts).double(), dim=-1)


def forward_chunk(model: Model, kv: KVCache, ids: torch.Tensor, start: int) -> torch.Tensor:
    where = torch.arange(start, start + CHUNK)
    batch = Batch(
        token_ids=ids[where],
        positions=where,
        slots=where,
        seq_starts=torch.tensor([0, CHUNK], dtype=torch.int32),
        block_tables=torch.arange(kv.blocks, dtype=torch.int32)[None],
        context_lens=torch.tensor([start + CHUNK], dtype=torch.int32),
        logit_rows=torch.arange(CHUNK),
    )
    return model.forward(batch, kv)


def divergence(logprobs: torch.Tensor, name: str) -> torch.Tensor:
    """KL divergence [positions] from the stored prediction; what is not among its 32 likeliest tokens counts as one token."""
    stored, places = np.load(DATA / f"{name}.npz"), np.load(DATA / "llama_cpp.npz")["positions"]
    expected = torch.from_numpy(stored["top_logprobs"]).double()
    actual = logprobs[torch.from_numpy(places.astype(np.int64))].gather(1, torch.from_numpy(stored["top_ids"].astype(np.int64)))
    rest_expected, rest_actual = (1 - p.exp().sum(dim=1).clamp(max=1 - 1e-9) for p in (expected, actual))
    kept = (expected.exp() * (expected - actual)).sum(dim=1)
    return kept + rest_expected * (rest_expected / rest_actual).log()


DECIDED_MARGIN = 0.15
"""Two engines that round activations differently may choose differently where the first two tokens are nearer than this."""


def agreement(logprobs: torch.Tensor, name: str, margin: float = 0.0) -> float:
    """Share of the same first choice among the positions where llama.cpp's leads by at least `margin`."""
    decided = np.load(DATA / "llama_cpp.npz")["margin"] >= margin
    same = logprobs.argmax(dim=-1).numpy() == np.load(DATA / f"{name}.npz")["top1"]
    return float(same[decided].mean())


@pytest.mark.model
def test_text_has_the_tokens_of_llama_cpp(model: Model) -> None:
    text = (DATA / "text.txt").read_text(encoding="utf-8")
    assert model.tokenizer.encode(text)[:512] == np.load(DATA / "llama_cpp.npz")["ids"].tolist()


@pytest.mark.model
def test_predictions_are_those_of_llama_cpp(logprobs: torch.Tensor) -> None:
    # Position 0 is left out: see above.
    assert float(divergence(logprobs, "llama_cpp")[1:].mean()) < 5e-3
    assert agreement(logprobs, "llama_cpp", DECIDED_MARGIN) >= 0.99
    # The order of summation decides about three near ties of 512. It was measured on AVX2 (507); others keep that much slack.
    assert agreement(logprobs, "llama_cpp") >= (0.99 if describe().isa == "avx2" else 0.985)


@pytest.mark.model
def test_predictions_are_near_those_in_float32(logprobs: torch.Tensor) -> None:
    from_float32 = divergence(logprobs, "fp32")
    assert float(from_float32[0]) < 1.0
    assert float(from_float32[1:].mean()) < 1e-3
    assert agreement(logprobs, "fp32", DECIDED_MARGIN) >= 0.99
    assert agreement(logprobs, "fp32") >= 0.98


@pytest.mark.model
def test_real_configuration_and_fingerprint(model: Model) -> None:
    config = model.config
    assert (config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim) == (28, 1536, 12, 2, 128)
    assert (config.mlp, config.vocab, config.context_length, config.rope.theta) == (8960, 151936, 32768, 1e6)
    assert model.fingerprint == "7036119fe528b35839483e2f4a4bfa8a"
    assert "<tool_call>" in model.chat_template
