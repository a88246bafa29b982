"""Writes llama_cpp.npz: what llama.cpp predicts for the first 512 tokens of text.txt. Run by hand with llama-cpp-python 0.3.x:

python make_llama_cpp.py MODEL.gguf [FULL.npy]

ids: int32 [512], the tokens. top1: int32 [512], the likeliest next token after each. margin: float16 [512], by how much its log
probability exceeds the second's. positions: int32 [64]; top_ids, top_logprobs: [64, 32], the likeliest tokens there.
FULL.npy, if given, gets all logits as float32 [512, vocab] (311 MB) and is not kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

TOKENS = 512
KEPT = 32


def main() -> None:
    folder = Path(__file__).parent
    model = Llama(sys.argv[1], n_ctx=TOKENS, n_batch=TOKENS, n_threads=2, logits_all=True, verbose=False)
    ids = model.tokenize((folder / "text.txt").read_bytes(), add_bos=False)[:TOKENS]
    if len(ids) < TOKENS:
        sys.exit(f"text.txt has only {len(ids)} tokens, {TOKENS} are needed")
    model.eval(ids)
    logits = np.asarray(model.scores[:TOKENS], dtype=np.float32)
    if len(sys.argv) > 2:
        np.save(sys.argv[2], logits)
    highest = logits.max(axis=1, keepdims=True)
    logprobs = logits - highest - np.log(np.exp(logits - highest, dtype=np.float64).sum(axis=1, keepdims=True))
    order = np.argsort(-logprobs, axis=1)[:, :KEPT]
    top = np.take_along_axis(logprobs, order, axis=1)
    positions = np.arange(0, TOKENS, TOKENS // 64)
    np.savez_compressed(
        folder / "llama_cpp.npz",
        ids=np.asarray(ids, dtype=np.int32),
        top1=order[:, 0].astype(np.int32),
        margin=(top[:, 0] - top[:, 1]).astype(np.float16),
        positions=positions.astype(np.int32),
        top_ids=order[positions].astype(np.int32),
        top_logprobs=top[positions].astype(np.float32),
    )


if __name__ == "__main__":
    main()
