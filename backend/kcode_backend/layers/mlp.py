"""The gated feed-forward part of a layer: down(silu(gate(x)) * up(x))."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kcode_backend.kernels import ops
from kcode_backend.kernels.packed import PackedWeight


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """gate_up: the rows of gate, then those of up."""

    gate_up: PackedWeight
    down: PackedWeight

    def forward(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        return ops.linear(ops.silu_mul(ops.linear(x, self.gate_up)), self.down)
