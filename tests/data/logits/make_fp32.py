"""Writes fp32.npz: what transformers predicts in float32 with the dequantised weights, at the places of llama_cpp.npz.

python make_fp32.py MODEL.gguf      (needs transformers, gguf and 14 GB of memory)

top1: int32 [512], the likeliest next token after each. top_ids, top_logprobs: [64, 32], the likeliest tokens at the positions of
llama_cpp.npz. It tells which side is nearer to the truth where two engines with 8-bit activations differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

KEPT = 32
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


def read_model(path: str) -> Qwen2ForCausalLM:
    reader = gguf.GGUFReader(path)

    def key(name: str) -> float:
        return reader.fields[f"qwen2.{name}"].contents()

    config = Qwen2Config(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=key("attention.head_count"),
        num_key_value_heads=key("attention.head_count_kv"),
        max_position_embeddings=key("context_length"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": key("rope.freq_base")},
        tie_word_embeddings=False,
    )
    state = {}
    for tensor in reader.tensors:
        name, _, kind = tensor.name.rpartition(".")
        if name.startswith("blk."):
            _, layer, part = name.split(".")
            name = f"model.layers.{layer}.{PARTS[part]}"
        else:
            name = OTHERS[name]
        state[f"{name}.{kind}"] = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    model = Qwen2ForCausalLM(config).eval()
    model.load_state_dict(state, assign=True)
    return model


def main() -> None:
    folder = Path(__file__).parent
    places = np.load(folder / "llama_cpp.npz")
    with torch.no_grad():
        logits = read_model(sys.argv[1])(torch.from_numpy(places["ids"][None].astype(np.int64))).logits[0]
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    top = logprobs[torch.from_numpy(places["positions"].astype(np.int64))].topk(KEPT)
    np.savez_compressed(
        folder / "fp32.npz",
        top1=logprobs.argmax(dim=-1).numpy().astype(np.int32),
        top_ids=top.indices.numpy().astype(np.int32),
        top_logprobs=top.values.numpy().astype(np.float32),
    )


if __name__ == "__main__":
    main()
