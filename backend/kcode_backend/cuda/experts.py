"""A mixture of experts on a GPU: their weights, wherever each lies, and the two launches that compute the chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int32
from dataclasses import dataclass, field

import torch

from kcode_backend.cuda.checks import contiguous, matrix, same_device, table
from kcode_backend.cuda.launching import MAX_SHARED_BYTES, Shape, launcher_for
from kcode_backend.cuda.weights import GROUP, Int4Weight
from kcode_backend.weights.quant import QuantFormat

# As in csrc/cuda/moe.cu and int4.cuh.
INT4_THREADS, MAX_CHOSEN = 128, 32
MAX_TOKENS = 64
"""Of `moe`; beyond them most experts are chosen, and a matrix product per expert reads each once."""
_BLOCK_ROWS = 16
"""Rows of a block: 1024 and 448 blocks for one token of K2, several for each multiprocessor of a large GPU."""
_GROUP_SHARED_BYTES = 2 * GROUP + 4
# Static shared memory of moe_down: an address pair and a share per chosen expert.
_DOWN_STATIC_BYTES = MAX_CHOSEN * 20

Expert = tuple[Int4Weight, Int4Weight, Int4Weight]
"""gate and up: [inner, hidden], down: [hidden, inner]."""


@dataclass(frozen=True)
class Int4Experts:
    """The experts of one layer. Those that are None are computed elsewhere: they add nothing here, and nothing is read of them.

    addresses: int64 [count, 6] on the device of the weights, which are used where they lie.
    """

    hidden: int
    inner: int
    gate_format: QuantFormat
    down_format: QuantFormat
    experts: tuple[Expert | None, ...] = field(repr=False)
    addresses: torch.Tensor = field(compare=False, repr=False)

    @property
    def count(self) -> int:
        return len(self.experts)


def over(experts: Sequence[Expert | None]) -> Int4Experts:
    """ValueError, naming the expert, when their shapes, formats or devices differ, or when none is given."""
    first = next((expert for expert in experts if expert is not None), None)
    if first is None:
        raise ValueError(f"none of {len(experts)} experts is given: their width and format are unknown")
    hidden, inner = first[0].columns, first[0].rows
    described = [(first[0].format, inner, hidden)] * 2 + [(first[2].format, hidden, inner)]
    rows: list[list[int]] = []
    for number, expert in enumerate(experts):
        if expert is None:
            rows.append([0] * 6)
            continue
        for name, part, (form, part_rows, part_columns) in zip(("gate", "up", "down"), expert, described, strict=True):
            if (part.format, part.rows, part.columns) != (form, part_rows, part_columns):
                raise ValueError(
                    f"{name} of expert {number} is {part.format.name} [{part.rows}, {part.columns}], "
                    f"expected {form.name} [{part_rows}, {part_columns}]"
                )
            same_device(first[0].quants, part.quants, part.scales)
        rows.append([tensor.data_ptr() for part in expert for tensor in (part.quants, part.scales)])
    addresses = torch.tensor(rows, dtype=torch.int64).to(first[0].quants.device)
    return Int4Experts(hidden, inner, first[0].format, first[2].format, tuple(experts), addresses)


def moe(
    x: torch.Tensor, experts: Int4Experts, ids: torch.Tensor, shares: torch.Tensor, base: torch.Tensor | None = None
) -> torch.Tensor:
    """base + sum of shares * down(silu(gate(x)) * up(x)): x and base [n, hidden], ids [n, k] int32, shares [n, k] float32.

    n is at most 64. Only the weights of chosen experts are read. ids outside of the experts, like experts that are None, add
    nothing. base is what is there before, as the output of a shared expert. silu(gate) * up is rounded to bf16 in between.
    """
    matrix("x", x)
    n, width = x.shape
    if width != experts.hidden:
        raise ValueError(f"x has {width} columns, the experts take {experts.hidden}")
    if n > MAX_TOKENS:
        raise ValueError(f"{n} tokens: the fused experts take at most {MAX_TOKENS}")
    table("ids", ids, torch.int32, n)
    chosen = ids.shape[1]
    if not 1 <= chosen <= MAX_CHOSEN:
        raise ValueError(f"{chosen} experts of a token: 1 to {MAX_CHOSEN} are possible")
    table("shares", shares, torch.float32, n, chosen)
    if base is not None:
        contiguous("base", base)
        if base.shape != x.shape:
            raise ValueError(f"base has shape {tuple(base.shape)}, x {tuple(x.shape)}")
    same_device(x, ids, shares, experts.addresses, *(() if base is None else (base,)))
    groups, inner_groups = width // GROUP, experts.inner // GROUP
    gate_shared, down_shared = 2 * groups * _GROUP_SHARED_BYTES, chosen * inner_groups * _GROUP_SHARED_BYTES
    if gate_shared > MAX_SHARED_BYTES or down_shared > MAX_SHARED_BYTES - _DOWN_STATIC_BYTES:
        raise ValueError(
            f"experts of {width} x {experts.inner} with {chosen} chosen do not fit into the shared memory of a block"
        )
    out = torch.empty_like(x)
    if not n:
        return out
    launcher, count, pairs = launcher_for(x.device), c_int32(experts.count), n * chosen
    between = x.new_empty(pairs, experts.inner)
    launcher.launch(
        f"moe_gate_up_{experts.gate_format.name}",
        Shape((pairs, -(-experts.inner // _BLOCK_ROWS)), INT4_THREADS, gate_shared),
        (
            experts.addresses, count, ids, c_int32(pairs), c_int32(chosen), x, c_int32(experts.inner), c_int32(groups),
            c_int32(_BLOCK_ROWS), between,
        ),
    )  # fmt: skip
    launcher.launch(
        f"moe_down_{experts.down_format.name}",
        Shape((n, -(-width // _BLOCK_ROWS)), INT4_THREADS, down_shared),
        (
            experts.addresses, count, ids, shares, c_int32(chosen), between, base, c_int32(experts.inner), c_int32(width),
            c_int32(_BLOCK_ROWS), out,
        ),
    )  # fmt: skip
    return out
