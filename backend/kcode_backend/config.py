"""The shape of a model, read from its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding of the first `dims` dimensions of each head."""

    theta: float
    dims: int
    scaling: Literal["none", "linear", "yarn"] = "none"
    factor: float = 1.0
    """How many times longer the context is than the one trained on; 1.0 without scaling."""
    original_context: int | None = None
    """yarn: the context trained on."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the layers need to know; all counts are per model except where said."""

    architecture: str
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    norm_eps: float
    context_length: int
    rope: RopeConfig
    tied_embeddings: bool
    qkv_bias: bool
    rope_interleaved: bool
    """The file stores q and k for rotation of neighbouring pairs (llama) and not of halves (qwen2)."""
