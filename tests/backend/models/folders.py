"""Folders as transformers saves them, of tiny random models of any family, and the same weights as a GGUF file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from kcode_backend.tokenizer import SPLIT_PATTERNS
from kcode_backend.weights.names import from_transformers
from tests.backend.conftest import SPECIAL, tiny_vocabulary

VOCAB = 280
"""Ten more rows than tokens, as checkpoints have them."""


@dataclass(frozen=True)
class Family:
    """A model class of transformers; `options` of its configuration besides the common ones."""

    name: str
    classes: str
    gguf_architecture: str
    options: dict[str, bool | int | float | str | dict[str, float | str]] = field(default_factory=dict)

    def model(self) -> transformers.PreTrainedModel:
        torch.manual_seed(3)
        common = {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.15,
            "bos_token_id": None,
            "eos_token_id": tiny_vocabulary()[0].index("<|im_end|>"),
            "tie_word_embeddings": False,
        }
        config = getattr(transformers, f"{self.classes}Config")(**(common | self.options), attn_implementation="eager")
        model = getattr(transformers, f"{self.classes}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 1:
                    weight.copy_(torch.randn(weight.shape) * 0.15 + (1.0 if "norm" in name else 0.0))
        return model


LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES = (
    Family("qwen2", "Qwen2", "qwen2"),
    Family("llama", "Llama", "llama"),
    Family("llama3-rope", "Llama", "", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}}),
    Family("qwen3", "Qwen3", "qwen3", {"head_dim": 24}),
    Family("qwen3-tied", "Qwen3", "qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    Family("qwen3-moe", "Qwen3Moe", "qwen3moe", {**EXPERTS, "head_dim": 24, "norm_topk_prob": True}),
    Family("qwen3-moe-plain", "Qwen3Moe", "", {**EXPERTS, "head_dim": 16, "norm_topk_prob": False}),
    Family("mixtral", "Mixtral", "llama", {"num_local_experts": 4, "num_experts_per_tok": 2}),
)


def save(model: transformers.PreTrainedModel, folder: Path, shard_size: str = "5GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard_size)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, pre: str = "qwen2") -> None:
    tokens, kinds, merges = tiny_vocabulary()
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERNS[pre]}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    normal = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == 1}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": tokens.index(text), "content": text, "special": SPECIAL[text] == 3, **flags} for text in SPECIAL]
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": added,
                "normalizer": None,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
                "decoder": level,
                "model": {"type": "BPE", "vocab": normal, "merges": [merge.split(" ") for merge in merges]},
            }
        )
    )
    names = {"eos_token": {"content": "<|im_end|>"}, "bos_token": None, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": "<|im_start|>"}))


def rewrite_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def write_gguf(folder: Path, architecture: str, path: Path) -> Path:
    """The folder's model as one file, experts stacked and llama's q and k in pairs, as the published conversions do."""
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config.get("num_local_experts"):
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    tokens, kinds, merges = tiny_vocabulary()
    unused = [f"[UNUSED{i}]" for i in range(len(tokens), VOCAB)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens + unused)
    writer.add_token_types(kinds + [5] * len(unused))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    for name, values in _gguf_tensors(tensors_of(folder), architecture, heads, kv_heads).items():
        if not (name == "output.weight" and config["tie_word_embeddings"]):
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_tensors(tensors: dict[str, torch.Tensor], architecture: str, heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    stacks: dict[str, dict[int, np.ndarray]] = {}
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        canonical, values = from_transformers(name), tensor.float().numpy()
        if architecture == "llama" and canonical.endswith(("attn_q.weight", "attn_k.weight")):
            count = heads if "attn_q" in canonical else kv_heads
            values = values.reshape(count, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape).copy()
        stem, _, number = canonical.removesuffix(".weight").rpartition(".")
        if "_exps." in canonical:
            stacks.setdefault(f"{stem}.weight", {})[int(number)] = values
        else:
            found[canonical] = values
    return found | {name: np.stack([experts[i] for i in range(len(experts))]) for name, experts in stacks.items()}
