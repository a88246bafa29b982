"""Norms, rope and activation against the torch reference, for every instruction set."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kcode_backend.kernels import ops, reference

TOLERANCE = 2e-5


@dataclass(frozen=True)
class Heads:
    heads: int
    kv_heads: int
    width: int


HEADS = [Heads(12, 2, 128), Heads(4, 4, 80), Heads(7, 1, 64), Heads(3, 1, 20)]


@pytest.mark.usefixtures("active")
def test_norms_match_for_any_width() -> None:
    for rows, width in ((1, 1), (3, 7), (5, 77), (33, 1536)):
        x, weight = torch.randn(rows, width), torch.randn(width)
        torch.testing.assert_close(
            ops.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6), rtol=TOLERANCE, atol=TOLERANCE
        )
        residual = torch.randn(rows, width)
        expected_residual = residual.clone()
        expected = reference.add_rms_norm(x, expected_residual, weight, 1e-6)
        torch.testing.assert_close(ops.add_rms_norm(x, residual, weight, 1e-6), expected, rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(residual, expected_residual)


@pytest.mark.usefixtures("active")
def test_norm_of_heads_keeps_leading_dimensions() -> None:
    x, weight = torch.randn(5, 3, 64), torch.randn(64)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.usefixtures("active")
def test_silu_mul_matches_up_to_extreme_gates() -> None:
    for rows, width in ((1, 1), (3, 1037), (40, 896)):
        gate_up = torch.randn(rows, 2 * width) * 6
        gate_up[:, 0] = 200.0
        gate_up[:, width - 1] = -200.0
        torch.testing.assert_close(ops.silu_mul(gate_up), reference.silu_mul(gate_up), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.usefixtures("active")
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_views_of_a_joint_projection_in_place(interleaved: bool) -> None:
    for heads, rotary, tokens in ((HEADS[0], 128, 1), (HEADS[1], 64, 9), (HEADS[3], 6, 70)):
        table = torch.randn(100, rotary)
        positions = torch.randint(0, 100, (tokens,), dtype=torch.int32)
        joint = torch.randn(tokens, (heads.heads + 2 * heads.kv_heads) * heads.width)
        split = heads.heads * heads.width
        q = joint[:, :split].view(tokens, heads.heads, heads.width)
        k = joint[:, split : split + heads.kv_heads * heads.width].view(tokens, heads.kv_heads, heads.width)
        expected_q, expected_k = q.clone(), k.clone()
        values = joint[:, split + heads.kv_heads * heads.width :].clone()
        reference.rope_(expected_q, expected_k, positions, table, interleaved)
        ops.rope_(q, k, positions, table, interleaved)
        torch.testing.assert_close(q, expected_q, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(k, expected_k, rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(joint[:, split + heads.kv_heads * heads.width :], values)


@pytest.mark.usefixtures("active")
def test_rows_do_not_influence_each_other() -> None:
    """With enough of them for several threads, and alone."""
    generator = torch.Generator().manual_seed(8)
    x, residual, weight = (torch.randn(*shape, generator=generator) for shape in ((70, 1037), (70, 1037), (1037,)))
    gate_up = torch.randn(70, 2 * 1037, generator=generator)
    table, positions = torch.randn(100, 64, generator=generator), torch.arange(70, dtype=torch.int32)
    q, k = torch.randn(70, 6, 80, generator=generator), torch.randn(70, 2, 80, generator=generator)

    def pass_over(rows: slice) -> tuple[torch.Tensor, ...]:
        summed, turned_q, turned_k = residual[rows].clone(), q[rows].clone(), k[rows].clone()
        normed = ops.add_rms_norm(x[rows].clone(), summed, weight, 1e-6)
        ops.rope_(turned_q, turned_k, positions[rows].clone(), table)
        return (
            ops.rms_norm(x[rows].clone(), weight, 1e-6),
            normed,
            summed,
            ops.silu_mul(gate_up[rows].clone()),
            turned_q,
            turned_k,
        )

    whole = pass_over(slice(0, 70))
    for rows in (slice(0, 1), slice(3, 5), slice(17, 33), slice(69, 70)):
        for part, expected in zip(pass_over(rows), whole, strict=True):
            assert torch.equal(part, expected[rows])


def test_wrong_arguments_are_named_with_their_numbers() -> None:
    q, k = torch.zeros(3, 6, 32), torch.zeros(3, 2, 32)
    with pytest.raises(ValueError, match=r"positions 0\.\.9 are outside of the table's 9"):
        ops.rope_(q, k, torch.tensor([0, 1, 9], dtype=torch.int32), torch.zeros(9, 32))
    with pytest.raises(ValueError, match="at most the head size 32"):
        ops.rope_(q, k, torch.zeros(3, dtype=torch.int32), torch.zeros(9, 34))
    with pytest.raises(ValueError, match="gate_up has 5 columns"):
        ops.silu_mul(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"weight must have shape \(8,\), got \(7,\)"):
        ops.rms_norm(torch.zeros(2, 8), torch.zeros(7), 1e-6)
