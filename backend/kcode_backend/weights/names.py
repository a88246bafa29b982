"""What tensors are called in a GGUF file."""

from __future__ import annotations

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
OUTPUT_NORM = "output_norm.weight"
ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3.1 and later: what each rotary frequency is divided by."""


def block(layer: int, part: str) -> str:
    """A tensor of one layer, such as blk.3.attn_q.weight."""
    return f"blk.{layer}.{part}"
