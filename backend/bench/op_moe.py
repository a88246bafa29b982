"""The fused mixture of experts against torch's loop over experts, at the shapes of Qwen3-30B-A3B and Kimi K2.

Only as many experts as fit `--memory-gib` are made; each token chooses its number of them at random, and few tokens choose anew
in each repetition, so that the weights come from memory. Decode is printed as GB/s of the weights read and as a share of a read
probe taken between the repetitions; the rest as 10^9 multiply-adds per second. torch multiplies bfloat16 (its integers on a CPU
need another layout), in a Python loop that groups the tokens by expert. Medians over interleaved repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from kcode_backend.kernels import native, ops, packed
from kcode_backend.kernels.packed import PackedExperts, PackedWeight
from kcode_backend.weights.quant import QuantFormat, row_bytes

PROBE_BYTES = 256 << 20


@dataclass(frozen=True)
class Layer:
    hidden: int
    inner: int
    experts: int
    chosen: int
    quant: QuantFormat

    @property
    def expert_weights(self) -> int:
        return 3 * self.hidden * self.inner


LAYERS = {
    "qwen3-30b-a3b": Layer(2048, 768, 128, 8, QuantFormat.Q4_K),
    "kimi-k2": Layer(7168, 2048, 384, 8, QuantFormat.INT4),
}


def random_weight(quant: QuantFormat, rows: int, columns: int, rng: np.random.Generator) -> PackedWeight:
    return packed.pack(quant, rng.integers(0, 256, rows * row_bytes(quant, columns), dtype=np.uint8), (rows, columns))


def random_experts(layer: Layer, count: int) -> PackedExperts:
    rng = np.random.default_rng(1)
    gates = tuple(random_weight(layer.quant, layer.inner, layer.hidden, rng) for _ in range(count))
    ups = tuple(random_weight(layer.quant, layer.inner, layer.hidden, rng) for _ in range(count))
    downs = tuple(random_weight(layer.quant, layer.hidden, layer.inner, rng) for _ in range(count))
    return packed.experts(gates, ups, downs)


def torch_loop(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """gate_up: [experts, 2 * inner, hidden], down: [experts, hidden, inner], all bfloat16."""
    out = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        tokens, places = (ids == expert).nonzero(as_tuple=True)
        gate, up = (x[tokens] @ gate_up[expert].T).chunk(2, dim=-1)
        hidden = torch.nn.functional.silu(gate) * up
        out.index_add_(0, tokens, (hidden @ down[expert].T) * weights[tokens, places, None])
    return out


def seconds(action: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - start


def measure(kernels: native.Kernels, name: str, tokens: int, memory_bytes: int, repetitions: int) -> None:
    layer = LAYERS[name]
    # Ours at about 0.6 bytes and torch's at 2 bytes a weight.
    count = min(layer.experts, int(memory_bytes / (2.6 * layer.expert_weights)))
    chosen = min(layer.chosen, count)
    experts = random_experts(layer, count)
    gate_up = torch.randn(count, 2 * layer.inner, layer.hidden, dtype=torch.bfloat16)
    down = torch.randn(count, layer.hidden, layer.inner, dtype=torch.bfloat16)
    probe = np.ones(PROBE_BYTES, dtype=np.uint8)
    x = torch.randn(tokens, layer.hidden)
    half, ours, theirs, probes, read = x.bfloat16(), [], [], [], []
    for repetition in range(repetitions):
        scores = torch.rand(tokens, count, generator=torch.Generator().manual_seed(repetition))
        weights, ids = scores.topk(chosen)
        ids, shares = ids.int(), weights / weights.sum(dim=1, keepdim=True)
        probes.append(seconds(kernels.read_probe, probe))
        ours.append(seconds(ops.moe, x, experts, ids, shares))
        theirs.append(seconds(torch_loop, half, gate_up, down, ids, shares.bfloat16()))
        read.append(ids.unique().numel() / count * experts.nbytes)
    ours_s, theirs_s = statistics.median(ours), statistics.median(theirs)
    macs = tokens * chosen * layer.expert_weights / ours_s / 1e9
    rate, probe_rate = statistics.mean(read) / ours_s / 1e9, PROBE_BYTES / statistics.median(probes) / 1e9
    what = f"{name:14} {layer.quant.name:5} {count:3} experts, {chosen} chosen, n={tokens:<4}"
    share = f"  {rate:6.2f} GB/s = {rate / probe_rate:4.0%} of the probe's {probe_rate:.1f}" if tokens <= 4 else ""
    print(f"{what} {ours_s * 1e3:9.2f} ms {macs:7.2f} GMAC/s {theirs_s / ours_s:6.2f} x torch bf16{share}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 16, 128])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--memory-gib", type=float, default=3.0)
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    kernels = native.active()
    if kernels is None:
        raise SystemExit(native.describe().reason)
    if arguments.threads:
        kernels.set_threads(arguments.threads)
    torch.set_num_threads(kernels.threads())
    print(f"{kernels.isa}, {kernels.threads()} threads")
    for name in arguments.layers:
        for tokens in arguments.tokens:
            measure(kernels, name, tokens, int(arguments.memory_gib * 2**30), arguments.repetitions)


if __name__ == "__main__":
    main()
