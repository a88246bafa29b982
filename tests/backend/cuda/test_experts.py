"""The fused mixture of experts and its router against float64 and against the engine's own on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kcode_backend.config import MoEConfig
from kcode_backend.cuda import experts, routing
from kcode_backend.cuda.experts import Expert, Int4Experts
from kcode_backend.kernels import packed
from kcode_backend.layers.moe import Router
from kcode_backend.weights.quant import QuantFormat
from tests.backend.cuda.tensors import ROUNDED, assert_near, random_bf16, random_weight

Dense = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random_experts(
    count: int, hidden: int, inner: int, device: torch.device, gate: QuantFormat, down: QuantFormat, absent: tuple[int, ...] = ()
) -> tuple[Int4Experts, list[Dense]]:
    """And the same as float64."""
    made: list[Expert | None] = []
    dense: list[Dense] = []
    for number in range(count):
        parts = [
            random_weight(quant, rows, columns, seed=10 * number + part)
            for part, (quant, rows, columns) in enumerate(((gate, inner, hidden), (gate, inner, hidden), (down, hidden, inner)))
        ]
        one, two, three = (weight.to(device) for weight, _ in parts)
        made.append(None if number in absent else (one, two, three))
        dense.append((parts[0][1], parts[1][1], parts[2][1]))
    return experts.over(made), dense


def expected_sum(
    x: torch.Tensor,
    dense: list[Dense],
    ids: torch.Tensor,
    shares: torch.Tensor,
    base: torch.Tensor | None,
    absent: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """And how large the terms of each sum are together."""
    wide = x.cpu().double()
    out = torch.zeros_like(wide) if base is None else base.cpu().double()
    size = out.abs()
    for token, row in enumerate(ids.tolist()):
        for place, expert in enumerate(row):
            if expert in absent or not 0 <= expert < len(dense):
                continue
            gate, up, down = dense[expert]
            between = torch.nn.functional.silu(gate @ wide[token]) * (up @ wide[token])
            share = float(shares[token, place])
            out[token] += share * (down @ between)
            size[token] += abs(share) * (down.abs() @ between.abs())
    return out, size


def random_choice(tokens: int, count: int, chosen: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.rand(tokens, count, generator=torch.Generator().manual_seed(seed))
    shares, ids = scores.topk(chosen)
    return ids.int(), shares.contiguous()


# K2's proportions at small size; Qwen3's K-quants; a row more than a block's rows, groups that are no multiple of a warp.
SHAPES = [
    (QuantFormat.INT4, QuantFormat.INT4, 12, 4, 128, 32),
    (QuantFormat.INT4, QuantFormat.INT4, 5, 2, 1056, 96),
    (QuantFormat.Q4_0, QuantFormat.Q4_0, 3, 3, 32, 288),
    (QuantFormat.Q4_K, QuantFormat.Q4_0, 4, 2, 256, 32),
    (QuantFormat.Q4_K, QuantFormat.Q4_K, 4, 2, 512, 256),
]


@pytest.mark.parametrize(("gate", "down", "count", "chosen", "hidden", "inner"), SHAPES)
def test_moe_is_the_weighted_sum_of_the_chosen_experts(
    gate: QuantFormat, down: QuantFormat, count: int, chosen: int, hidden: int, inner: int, device: torch.device
) -> None:
    """The numbers between the two launches are rounded to bf16, which is ROUNDED / 2 of each term of the sum at most."""
    layer, dense = random_experts(count, hidden, inner, device, gate, down)
    for tokens in (1, 2, 7):
        x = random_bf16(tokens, hidden, seed=tokens, device=device)
        ids, shares = random_choice(tokens, count, chosen, seed=tokens)
        base = random_bf16(tokens, hidden, seed=3, device=device) if tokens != 2 else None
        expected, size = expected_sum(x, dense, ids, shares, base, ())
        actual = experts.moe(x, layer, ids.to(device), shares.to(device), base)
        assert_near(actual, expected, size * (ROUNDED / 1e-5))
        # Of the whole row the error is far smaller, since roundings are not all in one direction.
        assert float((actual.cpu().double() - expected).norm() / expected.norm()) < 4e-3


def test_moe_of_64_tokens_over_few_experts_reads_each_for_pairs_of_tokens(device: torch.device) -> None:
    layer, dense = random_experts(3, 64, 32, device, QuantFormat.INT4, QuantFormat.INT4)
    x = random_bf16(64, 64, seed=1, device=device)
    ids, shares = random_choice(64, 3, 2, seed=5)
    expected, size = expected_sum(x, dense, ids, shares, None, ())
    assert_near(experts.moe(x, layer, ids.to(device), shares.to(device)), expected, size * (ROUNDED / 1e-5))


def test_an_expert_that_is_elsewhere_adds_nothing(device: torch.device) -> None:
    """Absent ones, ids outside of the layer, and the same expert twice."""
    layer, dense = random_experts(6, 64, 32, device, QuantFormat.INT4, QuantFormat.INT4, absent=(1, 4))
    x = random_bf16(3, 64, seed=1, device=device)
    ids = torch.tensor([[1, 2, -1], [4, 1, 6], [3, 3, 0]], dtype=torch.int32)
    shares = torch.tensor([[0.5, 0.25, 2.0], [1.0, 1.0, 1.0], [0.5, 0.75, 0.1]])
    expected, size = expected_sum(x, dense, ids, shares, None, (1, 4))
    actual = experts.moe(x, layer, ids.to(device), shares.to(device))
    assert not actual[1].any()
    assert_near(actual, expected, size * (ROUNDED / 1e-5))


@pytest.mark.parametrize(
    ("scoring", "normalise", "corrected"), [("sigmoid", True, True), ("softmax", True, False), ("softmax", False, False)]
)
@pytest.mark.parametrize(("count", "used"), [(384, 8), (33, 3), (4, 4)])
def test_the_router_chooses_as_the_engines(
    scoring: str, normalise: bool, corrected: bool, count: int, used: int, device: torch.device
) -> None:
    kind = "sigmoid" if scoring == "sigmoid" else "softmax"
    moe = MoEConfig(experts=count, used=used, mlp=32, normalise=normalise, scoring=kind, scale=2.827)
    correction = torch.linspace(-0.1, 0.1, count) if corrected else None
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(5, 64, generator=generator)
    weight = torch.randn(count, 64, generator=generator) * 0.2
    router = Router(moe, packed.pack(QuantFormat.F32, weight.numpy().view(np.uint8).reshape(-1), (count, 64)), correction)
    expected_ids, expected_shares = router.choose(x)
    logits = (x.double() @ weight.double().T).float()
    ids, shares = routing.choose(logits.to(device), moe, None if correction is None else correction.to(device))
    for row in range(5):
        expected = dict(zip(expected_ids[row].tolist(), expected_shares[row].tolist(), strict=True))
        actual = dict(zip(ids[row].tolist(), shares[row].tolist(), strict=True))
        assert actual == pytest.approx(expected, rel=2e-5)
    ranked = shares if correction is None else torch.sigmoid(logits).gather(1, ids.cpu().long()) + correction[ids.cpu().long()]
    assert bool((ranked[:, :-1] >= ranked[:, 1:]).all())


def test_the_router_takes_the_first_of_equals_and_leaves_out_what_is_no_number(device: torch.device) -> None:
    moe = MoEConfig(experts=40, used=3, mlp=32, normalise=True, scoring="sigmoid")
    logits = torch.zeros(2, 40)
    logits[0, 36] = 1.0
    logits[1] = float("nan")
    logits[1, 35] = float("-inf")
    ids, shares = routing.choose(logits.to(device), moe)
    assert ids.tolist() == [[36, 0, 1], [35, -1, -1]]
    assert shares[0].sum().item() == pytest.approx(1.0)
    assert shares[1].tolist() == [0.0, 0.0, 0.0]


def test_a_wrong_argument_is_refused_with_its_numbers(device: torch.device) -> None:
    layer, _ = random_experts(2, 64, 32, device, QuantFormat.INT4, QuantFormat.INT4)
    ids, shares = (tensor.to(device) for tensor in random_choice(1, 2, 1, seed=1))
    with pytest.raises(ValueError, match="x has 32 columns, the experts take 64"):
        experts.moe(random_bf16(1, 32, seed=1, device=device), layer, ids, shares)
    with pytest.raises(ValueError, match="65 tokens: the fused experts take at most 64"):
        experts.moe(random_bf16(65, 64, seed=1, device=device), layer, ids, shares)
    with pytest.raises(ValueError, match=r"ids must be contiguous int32 \[1, any\], got torch.int64"):
        experts.moe(random_bf16(1, 64, seed=1, device=device), layer, ids.long(), shares)
    with pytest.raises(ValueError, match=r"base has shape \(1, 32\)"):
        experts.moe(random_bf16(1, 64, seed=1, device=device), layer, ids, shares, random_bf16(1, 32, seed=1, device=device))
    parts = tuple(random_weight(QuantFormat.INT4, *shape, seed=1)[0] for shape in ((32, 64), (32, 64), (64, 64)))
    with pytest.raises(ValueError, match=r"down of expert 1 is INT4 \[64, 64\], expected INT4 \[64, 32\]"):
        experts.over([layer.experts[0], (parts[0].to(device), parts[1].to(device), parts[2].to(device))])
    with pytest.raises(ValueError, match="none of 2 experts is given"):
        experts.over([None, None])
    with pytest.raises(ValueError, match="8 groups have no CUDA kernel"):
        routing.choose(torch.zeros(1, 16, device=device), MoEConfig(experts=16, used=2, mlp=32, normalise=True, groups=8))
