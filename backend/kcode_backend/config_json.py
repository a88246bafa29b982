"""The shape of a model from the config.json of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from kcode_backend.config import ModelConfig, MoEConfig, RopeConfig, share, within
from kcode_backend.errors import ModelFileError
from kcode_backend.weights import names
from kcode_backend.weights.checkpoint import TensorInfo
from kcode_backend.weights.compressed import check_quantization
from kcode_backend.weights.metadata import Metadata, Scalar, Value

MODEL_TYPES = {"llama": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
"""model_type to the engine's architecture."""

_OBJECT = TypeAdapter(dict[str, JsonValue])


def read_json(path: Path) -> Metadata:
    """A JSON object with dots between nested keys; null is as good as no key. ModelFileError when it is none."""
    try:
        raw = _OBJECT.validate_json(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"cannot be opened: {error.strerror}") from error
    except ValidationError as error:
        raise ModelFileError(f"is no JSON object: {error.errors()[0]['msg']}") from error
    values: dict[str, Value] = {}
    _flatten("", raw, values)
    return Metadata(values)


def _flatten(prefix: str, items: Mapping[str, JsonValue], into: dict[str, Value]) -> None:
    for key, value in items.items():
        if isinstance(value, dict):
            _flatten(f"{prefix}{key}.", value, into)
        elif isinstance(value, list):
            into[prefix + key] = tuple(item for item in value if isinstance(item, Scalar))
        elif value is not None:
            into[prefix + key] = value


def text_part(config: Metadata) -> Metadata:
    """The part of a configuration that describes the language model: all of it, or its text_config."""
    prefix = "text_config."
    inner = {key.removeprefix(prefix): value for key, value in config.values.items() if key.startswith(prefix)}
    return Metadata({**config.values, **inner}) if inner else config


def read_config_json(config: Metadata, tensors: Mapping[str, TensorInfo], name: str) -> ModelConfig:
    """`name`: what the model is called; raises ModelFileError for anything missing, contradictory or unknown."""
    config = text_part(config)
    kind = config.text("model_type")
    if kind not in MODEL_TYPES:
        raise ModelFileError(f"model_type {kind!r} is not supported; supported: {', '.join(MODEL_TYPES)}")
    check_quantization(config)
    _refuse_variants(config)
    hidden = _count(config, "hidden_size")
    heads = _count(config, "num_attention_heads")
    kv_heads = _optional_count(config, "num_key_value_heads") or heads
    share(heads, kv_heads, "num_attention_heads", "num_key_value_heads")
    head_dim = _optional_count(config, "head_dim") or share(hidden, heads, "hidden_size", "num_attention_heads")
    tied = config.optional_boolean("tie_word_embeddings") or False
    if not tied and names.OUTPUT not in tensors:
        raise ModelFileError("there is no tensor lm_head.weight, and tie_word_embeddings is not true")
    eps = config.number("rms_norm_eps")
    if not 0 < eps < 1:
        raise ModelFileError(f"rms_norm_eps is {eps}, not between 0 and 1")
    return ModelConfig(
        architecture=MODEL_TYPES[kind],
        name=name,
        layers=_count(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp=_count(config, "intermediate_size"),
        vocab=_count(config, "vocab_size"),
        norm_eps=eps,
        context_length=_count(config, "max_position_embeddings"),
        rope=_read_rope(config, head_dim),
        tied_embeddings=tied,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        rope_interleaved=False,
        qk_norm=kind.startswith("qwen3"),
        moe=_read_moe(config, kind),
    )


def _refuse_variants(config: Metadata) -> None:
    """ModelFileError for what would run and give wrong answers."""
    activation = config.text("hidden_act")
    if activation != "silu":
        raise ModelFileError(f"hidden_act is {activation!r}; only 'silu' is supported")
    window = config.optional_integer("sliding_window")
    if window is not None and config.optional_boolean("use_sliding_window") is not False:
        raise ModelFileError(f"sliding_window is {window}; attention over a window is not supported")


def _read_moe(config: Metadata, kind: str) -> MoEConfig | None:
    if kind == "mixtral":
        inner, normalise = _count(config, "intermediate_size"), True
    elif kind == "qwen3_moe":
        inner, normalise = _count(config, "moe_intermediate_size"), config.optional_boolean("norm_topk_prob") or False
        step = config.optional_integer("decoder_sparse_step")
        dense = config.values.get("mlp_only_layers")
        if step not in (None, 1) or dense not in (None, ()):
            raise ModelFileError(f"decoder_sparse_step {step} with mlp_only_layers {dense}: every layer must have experts")
    else:
        return None
    experts = _optional_count(config, "num_local_experts") or _count(config, "num_experts")
    used = _count(config, "num_experts_per_tok")
    if used > experts:
        raise ModelFileError(f"num_experts_per_tok is {used}, but there are {experts} experts")
    return MoEConfig(experts, used, inner, normalise)


def _count(config: Metadata, key: str) -> int:
    return within(key, config.integer(key))


def _optional_count(config: Metadata, key: str) -> int | None:
    value = config.optional_integer(key)
    return None if value is None else within(key, value)


def _positive(config: Metadata, key: str) -> float:
    value = config.number(key)
    if not 0 < value < math.inf:
        raise ModelFileError(f"{key} is {value}, not a positive number")
    return value


def _read_rope(config: Metadata, dims: int) -> RopeConfig:
    """transformers before 5 has rope_theta and rope_scaling, later rope_parameters with both."""
    section = "rope_parameters" if "rope_parameters.rope_theta" in config.values else "rope_scaling"
    theta = _positive(config, "rope_parameters.rope_theta" if section == "rope_parameters" else "rope_theta")
    rotated = config.optional_number("partial_rotary_factor")
    if rotated is not None and rotated != 1.0:
        raise ModelFileError(f"partial_rotary_factor is {rotated}; only 1.0 is supported")
    scaling = config.optional_text(f"{section}.rope_type") or config.optional_text(f"{section}.type") or "default"
    if scaling == "default":
        return RopeConfig(theta, dims)
    factor = _positive(config, f"{section}.factor")
    if scaling == "linear":
        return RopeConfig(theta, dims, "linear", factor)
    if scaling == "llama3":
        return RopeConfig(theta, dims, factors=_llama3_factors(config, section, theta, dims))
    if scaling == "yarn":
        if f"{section}.mscale" in config.values:
            raise ModelFileError(f"{section}.mscale is not supported for this architecture")
        # The published rule; what the file states replaces it.
        magnitude = 1.0 + 0.1 * math.log(factor)
        stated = config.optional_number(f"{section}.attention_factor")
        return RopeConfig(
            theta,
            dims,
            "yarn",
            factor,
            original_context=_count(config, f"{section}.original_max_position_embeddings"),
            beta_fast=config.optional_number(f"{section}.beta_fast") or 32.0,
            beta_slow=config.optional_number(f"{section}.beta_slow") or 1.0,
            attention_factor=1.0 if stated is None else stated / magnitude,
        )
    raise ModelFileError(f"{section}.rope_type is {scaling!r}; supported: default, linear, llama3, yarn")


def _llama3_factors(config: Metadata, section: str, theta: float, dims: int) -> tuple[float, ...]:
    """Llama 3.1's scaling: short waves stay, long ones are stretched by `factor`, with a ramp between."""
    factor = _positive(config, f"{section}.factor")
    low, high = _positive(config, f"{section}.low_freq_factor"), _positive(config, f"{section}.high_freq_factor")
    context = _count(config, f"{section}.original_max_position_embeddings")
    if high <= low:
        raise ModelFileError(f"{section}.high_freq_factor {high} is not above low_freq_factor {low}")
    factors: list[float] = []
    for i in range(0, dims, 2):
        turns = context / (2 * math.pi * theta ** (i / dims))
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - kept) / factor + kept))
    return tuple(factors)
