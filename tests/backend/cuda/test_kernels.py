"""Each CUDA kernel against float64, on shapes that are prime, tiny, and one past a block."""

from __future__ import annotations

import pytest
import torch

from kcode_backend.cuda import ops, weights
from kcode_backend.weights.quant import QuantFormat
from tests.backend.cuda.tensors import assert_near, random_bf16, random_weight
from tests.backend.kernels.blocks import random_rows


@pytest.mark.parametrize("quant", weights.FORMATS, ids=lambda quant: quant.name)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (7, 768), (17, 1280), (13, 7424)])
def test_linear_follows_the_dequantised_weights(quant: QuantFormat, rows: int, columns: int, device: torch.device) -> None:
    weight, dense = random_weight(quant, rows, columns, seed=rows)
    for tokens in (1, 2, 3, 4, 9):
        x = random_bf16(tokens, columns, seed=tokens, device=device)
        bias = random_bf16(rows, seed=5, device=device) if tokens % 2 else None
        wide = x.cpu().double()
        expected = wide @ dense.T + (0.0 if bias is None else bias.cpu().double())
        assert_near(ops.linear(x, weight.to(device), bias), expected, wide.abs() @ dense.abs().T)


@pytest.mark.parametrize("columns", [32, 96, 1056])
def test_linear_takes_any_number_of_whole_groups(columns: int, device: torch.device) -> None:
    weight, dense = random_weight(QuantFormat.Q4_0, 5, columns, seed=2)
    x = random_bf16(2, columns, seed=1, device=device)
    wide = x.cpu().double()
    assert_near(ops.linear(x, weight.to(device)), wide @ dense.T, wide.abs() @ dense.abs().T)


@pytest.mark.parametrize(("rows", "width"), [(1, 8), (3, 136), (5, 2056), (2, 7168)])
@pytest.mark.parametrize("adds", [False, True])
def test_rms_norm(rows: int, width: int, adds: bool, device: torch.device) -> None:
    x, residual = (random_bf16(rows, width, seed=seed, device=device) for seed in (1, 2))
    weight = random_bf16(width, seed=3, device=device)
    summed = (x.cpu().float() + residual.cpu().float()).bfloat16() if adds else x.cpu()
    actual = ops.add_rms_norm(x, residual, weight, 1e-5) if adds else ops.rms_norm(x, weight, 1e-5)
    if adds:
        assert torch.equal(residual.cpu(), summed)
    wide = summed.double()
    expected = wide / (wide.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * weight.cpu().double()
    assert_near(actual, expected, expected.abs())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "width", "rotary"), [(3, 1, 10, 6), (7, 2, 64, 64), (12, 2, 128, 128)])
def test_rope_rotates_pairs_in_place(
    interleaved: bool, heads: int, kv_heads: int, width: int, rotary: int, device: torch.device
) -> None:
    tokens = 3
    fused = random_bf16(tokens, (heads + kv_heads) * width + 16, seed=1, device=device)
    before = fused.cpu().clone()
    q = fused[:, : heads * width].view(tokens, heads, width)
    k = fused[:, heads * width : (heads + kv_heads) * width].view(tokens, kv_heads, width)
    angles = torch.rand(9, rotary // 2, generator=torch.Generator().manual_seed(4)) * 6.28
    table = torch.cat((angles.cos(), angles.sin()), dim=1)
    positions = torch.tensor([8, 0, 3], dtype=torch.int32)
    ops.rope_(q, k, positions.to(device), table.to(device), interleaved)
    expected = before.double()
    for start in range(0, (heads + kv_heads) * width, width):
        step = slice(start, start + rotary, 2) if interleaved else slice(start, start + rotary // 2)
        other = slice(start + 1, start + rotary, 2) if interleaved else slice(start + rotary // 2, start + rotary)
        a, b = before[:, step].double(), before[:, other].double()
        cos, sin = table[positions.long()].double().chunk(2, dim=1)
        expected[:, step], expected[:, other] = a * cos - b * sin, b * cos + a * sin
    assert_near(fused, expected, before.double().abs().amax())
    assert torch.equal(fused[:, (heads + kv_heads) * width :].cpu(), before[:, (heads + kv_heads) * width :])


@pytest.mark.parametrize(("rows", "width"), [(1, 2), (3, 510), (2, 1026)])
def test_silu_mul(rows: int, width: int, device: torch.device) -> None:
    gate_up = random_bf16(rows, 2 * width, seed=1, device=device) * 8
    gate, up = gate_up.cpu().double().chunk(2, dim=1)
    expected = gate * torch.sigmoid(gate) * up
    assert_near(ops.silu_mul(gate_up), expected, expected.abs())


def test_a_wrong_shape_is_refused_with_its_numbers(device: torch.device) -> None:
    weight, _ = random_weight(QuantFormat.Q4_0, 3, 64, seed=1)
    with pytest.raises(ValueError, match="x has 32 columns, the weight takes 64"):
        ops.linear(random_bf16(1, 32, seed=1, device=device), weight.to(device))
    with pytest.raises(ValueError, match="17 tokens: the 4-bit kernels take at most 16"):
        ops.linear(random_bf16(17, 64, seed=1, device=device), weight.to(device))
    with pytest.raises(ValueError, match="12 are not a multiple of 8"):
        ops.rms_norm(random_bf16(1, 12, seed=1, device=device), random_bf16(12, seed=1, device=device), 1e-5)
    with pytest.raises(ValueError, match="Q6_K has no CUDA kernel"):
        weights.from_gguf(QuantFormat.Q6_K, random_rows(QuantFormat.Q6_K, 1, 256), (1, 256))
