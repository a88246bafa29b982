"""Bandwidth and speed of `linear` at the shapes of Qwen2.5-Coder-1.5B, or of Kimi K2 by --shapes.

Decode (one token) is printed as GB/s of packed weights and as a share of a read probe taken between the repetitions; prefill
as 10^9 multiply-adds per second, and where AMX runs also as a share of a probe of its units and as a multiple of AVX-512-VNNI's
speed. Minima over interleaved repetitions, so that a busy neighbour disturbs little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kcode_backend.kernels import native, ops, packed
from kcode_backend.kernels.packed import PackedWeight
from kcode_backend.weights.quant import QuantFormat, row_bytes

SHAPES = {"qkv": (2048, 1536), "o": (1536, 1536), "gate_up": (17920, 1536), "down": (1536, 8960), "vocab": (151936, 1536)}
K2_SHAPES = {"k2_q_b": (12288, 1536), "k2_o": (7168, 8192), "k2_shared": (4096, 7168)}
"""Of Kimi K2, whose weights outside the experts are BF16."""
ALL_SHAPES = SHAPES | K2_SHAPES
FORMATS = {
    "Q4_K": QuantFormat.Q4_K,
    "Q6_K": QuantFormat.Q6_K,
    "Q8_0": QuantFormat.Q8_0,
    "Q4_0": QuantFormat.Q4_0,
    "BF16": QuantFormat.BF16,
}
# Enough copies of a small matrix to leave the last-level cache between two uses.
MIN_WORKING_SET = 128 << 20
PROBE_BYTES = 256 << 20
MATRIX_PROBE_REPETITIONS = 100_000  # about 5 ms


@dataclass
class Case:
    name: str
    weights: list[PackedWeight]
    used: int = 0
    best_s: float = float("inf")

    def run(self, x: torch.Tensor) -> None:
        weight = self.weights[self.used % len(self.weights)]
        self.used += 1
        start = time.perf_counter()
        ops.linear(x, weight)
        self.best_s = min(self.best_s, time.perf_counter() - start)


def random_weight(quant: QuantFormat, shape: tuple[int, int], rng: np.random.Generator) -> PackedWeight:
    data = rng.integers(0, 256, shape[0] * row_bytes(quant, shape[1]), dtype=np.uint8)
    return packed.pack(quant, data, shape)


def best_of(action: Callable[[], None], repetitions: int) -> float:
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def cases(quant: QuantFormat, names: list[str], tokens: int) -> list[Case]:
    rng = np.random.default_rng(1)
    found: list[Case] = []
    for name in names:
        first = random_weight(quant, ALL_SHAPES[name], rng)
        copies = 1 if tokens > 1 else -(-MIN_WORKING_SET // first.nbytes)
        found.append(Case(name, [first, *(random_weight(quant, ALL_SHAPES[name], rng) for _ in range(copies - 1))]))
    return found


def report(name: str, case: Case, tokens: int, share: str) -> None:
    macs = ALL_SHAPES[case.name][0] * ALL_SHAPES[case.name][1] * tokens / case.best_s / 1e9
    print(f"{name:5} {case.name:8} n={tokens:<4} {case.best_s * 1e3:9.3f} ms {macs:7.2f} GMAC/s  {share}", flush=True)


def measure_decode(
    kernels: native.Kernels, quant: QuantFormat, arguments: argparse.Namespace, probe: npt.NDArray[np.uint8]
) -> None:
    measured = cases(quant, arguments.shapes, 1)
    inputs = {case.name: torch.randn(1, ALL_SHAPES[case.name][1]) for case in measured}
    probe_s = float("inf")
    for _ in range(arguments.repetitions):
        probe_s = min(probe_s, best_of(lambda: kernels.read_probe(probe), 1))
        for case in measured:
            case.run(inputs[case.name])
    probe_rate = PROBE_BYTES / probe_s / 1e9
    for case in measured:
        rate = case.weights[0].nbytes / case.best_s / 1e9
        report(quant.name, case, 1, f"{rate:6.2f} GB/s = {rate / probe_rate:4.0%} of the probe's {probe_rate:.1f}")


def measure_prefill(kernels: native.Kernels, quant: QuantFormat, arguments: argparse.Namespace, tokens: int) -> None:
    measured = cases(quant, [name for name in arguments.shapes if name != "vocab"], tokens)
    inputs = {case.name: torch.randn(tokens, ALL_SHAPES[case.name][1]) for case in measured}
    vector = native.load(kernels.path, "avx512vnni") if kernels.isa == "amx" else None
    vector_cases = [Case(case.name, case.weights) for case in measured] if vector is not None else []
    probe_rate = 0.0
    for _ in range(max(arguments.repetitions // 10, 2)):
        if vector is not None:
            start = time.perf_counter()
            done = kernels.matrix_probe(MATRIX_PROBE_REPETITIONS)
            probe_rate = max(probe_rate, done / (time.perf_counter() - start) / 1e9)
        for case in measured:
            case.run(inputs[case.name])
        with native.using(vector or kernels):
            for case in vector_cases:
                case.run(inputs[case.name])
    for place, case in enumerate(measured):
        share = ""
        if vector_cases:
            rate = ALL_SHAPES[case.name][0] * ALL_SHAPES[case.name][1] * tokens / case.best_s / 1e9
            share = f"{rate / probe_rate:4.0%} of the AMX probe's {probe_rate / 500:.2f} TFLOP/s, "
            share += f"{vector_cases[place].best_s / case.best_s:.1f} x avx512vnni"
        report(quant.name, case, tokens, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="+", default=["Q4_K", "Q6_K"], choices=list(FORMATS))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(ALL_SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 512])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repetitions", type=int, default=30)
    arguments = parser.parse_args()
    kernels = native.active()
    if kernels is None:
        raise SystemExit(native.describe().reason)
    if arguments.threads:
        kernels.set_threads(arguments.threads)
    print(f"{kernels.isa}, {kernels.threads()} threads")
    probe = np.ones(PROBE_BYTES, dtype=np.uint8)
    for name in arguments.formats:
        for tokens in arguments.tokens:
            if tokens == 1:
                measure_decode(kernels, FORMATS[name], arguments, probe)
            else:
                measure_prefill(kernels, FORMATS[name], arguments, tokens)


if __name__ == "__main__":
    main()
