"""Speed of `paged_attention` at the heads of Qwen2.5-Coder-1.5B: one decode token and a prefill chunk over several contexts."""

from __future__ import annotations

import argparse
import time

import torch

from kcode_backend.kernels import native, ops

HEADS, KV_HEADS, WIDTH, BLOCK = 12, 2, 128, 64


def measure(tokens: int, context: int, repetitions: int) -> None:
    blocks = -(-context // BLOCK)
    caches = [torch.randn(blocks, BLOCK, KV_HEADS, WIDTH).half() for _ in range(2)]
    q = torch.randn(tokens, HEADS, WIDTH)
    table = torch.randperm(blocks).to(torch.int32)[None]
    starts, contexts = torch.tensor([0, tokens], dtype=torch.int32), torch.tensor([context], dtype=torch.int32)
    best_s = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        ops.paged_attention(q, caches[0], caches[1], table, starts, contexts, WIDTH**-0.5)
        best_s = min(best_s, time.perf_counter() - start)
    pairs = tokens * (context - tokens) + tokens * (tokens + 1) // 2
    macs = pairs * HEADS * WIDTH * 2 / best_s / 1e9
    print(f"n={tokens:<4} context={context:<6} {best_s * 1e3:9.3f} ms {macs:7.2f} GMAC/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 256])
    parser.add_argument("--contexts", nargs="+", type=int, default=[256, 1024, 4096, 16384])
    parser.add_argument("--repetitions", type=int, default=10)
    arguments = parser.parse_args()
    kernels = native.active()
    if kernels is None:
        raise SystemExit(native.describe().reason)
    print(f"{kernels.isa}, {kernels.threads()} threads")
    for tokens in arguments.tokens:
        for context in arguments.contexts:
            if context >= tokens:
                measure(tokens, context, arguments.repetitions)


if __name__ == "__main__":
    main()
