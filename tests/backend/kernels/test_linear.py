"""Packed weights and `linear` against gguf's dequantisation, for every format and instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kcode_backend.kernels import native, ops, packed, reference
from kcode_backend.kernels.native import Kernels
from kcode_backend.weights.quant import QuantFormat, format_of_ggml_type, row_bytes
from tests.backend.kernels.blocks import SCALES, columns_for, random_rows

FORMATS = list(QuantFormat)
# Prime, tiny, one past the tile of 8 or 16 rows, and of two such tiles.
SHAPES = [(1, 256), (7, 512), (17, 256), (33, 1280), (131, 768)]
TOKENS = [1, 2, 3, 5, 8, 9, 33]
# Of |x| * |w|: rounding x to 8 bits per 32 columns gives about 0.3 % of an independent error; dense formats only reorder sums.
TOLERANCE_QUANTIZED, TOLERANCE_DENSE = 0.01, 1e-6


def assert_close_to_reference(
    actual: torch.Tensor, x: torch.Tensor, dense: torch.Tensor, bias: torch.Tensor | None, tolerance: float
) -> None:
    """tolerance: of |x| * |w|, the natural size of a product's error."""
    expected = x.double() @ dense.double().T + (0.0 if bias is None else bias.double())
    bound = x.double().norm(dim=1)[:, None] * dense.double().norm(dim=1)[None, :]
    error = (actual.double() - expected).abs() / bound.clamp_min(1e-12)
    assert float(error.max()) < tolerance, f"{float(error.max()):.2e} of |x||w|"


@pytest.mark.parametrize("quant", FORMATS, ids=lambda quant: quant.name)
@pytest.mark.usefixtures("active")
def test_packing_loses_nothing(quant: QuantFormat) -> None:
    for seed, (rows, about) in enumerate(SHAPES):
        columns = columns_for(quant, about)
        raw = random_rows(quant, rows, columns, seed)
        weight = packed.pack(quant, raw, (rows, columns))
        assert np.array_equal(packed.dequantize(weight), reference.dequantize(quant, raw, columns))


@pytest.mark.parametrize("quant", FORMATS, ids=lambda quant: quant.name)
@pytest.mark.usefixtures("active")
def test_linear_follows_the_dequantised_weights(quant: QuantFormat) -> None:
    generator = torch.Generator().manual_seed(3)
    for seed, (rows, about) in enumerate(SHAPES):
        columns = columns_for(quant, about)
        raw = random_rows(quant, rows, columns, seed)
        weight = packed.pack(quant, raw, (rows, columns))
        dense = torch.from_numpy(reference.dequantize(quant, raw, columns))
        for tokens in TOKENS:
            x = torch.randn(tokens, columns, generator=generator)
            bias = torch.randn(rows, generator=generator) if tokens % 2 else None
            tolerance = TOLERANCE_QUANTIZED if quant.is_quantized else TOLERANCE_DENSE
            assert_close_to_reference(ops.linear(x, weight, bias), x, dense, bias, tolerance)


@pytest.mark.parametrize("quant", [quant for quant in FORMATS if quant.is_quantized], ids=lambda quant: quant.name)
@pytest.mark.usefixtures("active")
def test_a_large_activation_costs_only_its_group_of_columns_their_precision(quant: QuantFormat) -> None:
    raw = random_rows(quant, 19, 512)
    dense = torch.from_numpy(reference.dequantize(quant, raw, 512)).double()
    weight = packed.pack(quant, raw, (19, 512))
    for tokens in (1, 2, 4):
        x = torch.randn(tokens, 512, generator=torch.Generator().manual_seed(tokens))
        x[:, 64:96] = 0
        x[:, 69] = 1000.0
        others = x.double()
        others[:, 69] = 0
        error = (ops.linear(x, weight).double() - x.double() @ dense.T).abs()
        bound = others.norm(dim=1)[:, None] * dense.norm(dim=1)[None, :]
        assert float((error / bound).max()) < TOLERANCE_QUANTIZED


@pytest.mark.parametrize("quant", [quant for quant in FORMATS if quant.is_quantized], ids=lambda quant: quant.name)
@pytest.mark.usefixtures("active")
def test_sums_do_not_overflow_at_the_largest_weights_and_activations(quant: QuantFormat) -> None:
    raw = np.full((19, row_bytes(quant, 512)), 0xFF, dtype=np.uint8)
    template = random_rows(quant, 19, 512)
    for offset in SCALES[quant]:
        for start in range(offset, raw.shape[1], quant.block_bytes):
            raw[:, start : start + 2] = template[:, start : start + 2]
    if quant is QuantFormat.Q8_0:
        raw.reshape(19, -1, quant.block_bytes)[:, :, 2:] = 0x80
    if quant is QuantFormat.Q6_K:
        raw.reshape(19, -1, quant.block_bytes)[:, :, 192:208] = 0x7F
    dense = torch.from_numpy(reference.dequantize(quant, raw, 512))
    weight = packed.pack(quant, raw, (19, 512))
    for sign in (1.0, -1.0):
        for tokens in (1, 2, 4):
            x = torch.full((tokens, 512), sign * 3.0)
            assert_close_to_reference(ops.linear(x, weight), x, dense, None, 1e-6)
    # The other end of Q6_K's range: weights at -32 with the opposite largest scale.
    if quant is QuantFormat.Q6_K:
        raw.reshape(19, -1, quant.block_bytes)[:, :, :192] = 0
        raw.reshape(19, -1, quant.block_bytes)[:, :, 192:208] = 0x80
        dense = torch.from_numpy(reference.dequantize(quant, raw, 512))
        weight = packed.pack(quant, raw, (19, 512))
        for tokens in (1, 4):
            x = torch.full((tokens, 512), -2.0)
            assert_close_to_reference(ops.linear(x, weight), x, dense, None, 1e-6)


@pytest.mark.usefixtures("active")
def test_stacked_weights_give_their_outputs_side_by_side() -> None:
    shapes = ((24, QuantFormat.Q4_K), (5, QuantFormat.Q6_K), (9, QuantFormat.Q8_0), (3, QuantFormat.F16))
    parts = [packed.pack(quant, random_rows(quant, rows, 512, rows), (rows, 512)) for rows, quant in shapes]
    stacked = packed.stack(parts)
    assert stacked.shape == (41, 512)
    bias = torch.randn(41)
    for tokens in (1, 7):
        x = torch.randn(tokens, 512)
        expected = torch.cat([ops.linear(x, part) for part in parts], dim=1) + bias
        torch.testing.assert_close(ops.linear(x, stacked, bias), expected, rtol=1e-6, atol=1e-6)
    assert np.array_equal(packed.dequantize(stacked), np.concatenate([packed.dequantize(part) for part in parts]))


@pytest.mark.parametrize("quant", FORMATS, ids=lambda quant: quant.name)
@pytest.mark.usefixtures("active")
def test_tokens_do_not_influence_each_other(quant: QuantFormat) -> None:
    """To the bit, so that drafts, batches and chunks change nothing."""
    columns = columns_for(quant, 512)
    weight = packed.pack(quant, random_rows(quant, 40, columns), (40, columns))
    x = torch.randn(300, columns)
    together = ops.linear(x, weight)
    for token in (0, 1, 125, 126, 127, 298, 299):
        assert torch.equal(together[token : token + 1], ops.linear(x[token : token + 1], weight))
    for tokens in range(2, 18):
        assert torch.equal(together[:tokens], ops.linear(x[:tokens], weight))


@pytest.mark.parametrize("shape", [(7, 608), (9, 1000), (4, 1536)])
@pytest.mark.parametrize("quant", [QuantFormat.F32, QuantFormat.F16, QuantFormat.BF16], ids=lambda quant: quant.name)
@pytest.mark.usefixtures("active")
def test_a_token_of_plain_weights_is_the_same_alone(quant: QuantFormat, shape: tuple[int, int]) -> None:
    """One token goes another way through rows of these kinds, whose ends belong to no whole strip."""
    weight = packed.pack(quant, random_rows(quant, *shape), shape)
    x = torch.randn(3, shape[1])
    together = ops.linear(x, weight)
    assert torch.equal(together, torch.cat([ops.linear(x[token : token + 1], weight) for token in range(3)]))


@pytest.mark.usefixtures("active")
def test_embedding_rows_are_exact() -> None:
    for quant in FORMATS:
        columns = columns_for(quant, 512)
        raw = random_rows(quant, 37, columns)
        weight = packed.pack(quant, raw, (37, columns))
        ids = torch.tensor([36, 0, 8, 8, 15], dtype=torch.int32)
        assert np.array_equal(ops.embedding(ids, weight).numpy(), reference.dequantize(quant, raw, columns)[ids.numpy()])


def test_thread_count_does_not_change_the_result(active: Kernels) -> None:
    weight = packed.pack(QuantFormat.Q6_K, random_rows(QuantFormat.Q6_K, 333, 768), (333, 768))
    x = torch.randn(11, 768)
    before = active.threads()
    try:
        results: list[torch.Tensor] = []
        for threads in (1, 2, 5):
            active.set_threads(threads)
            assert active.threads() == threads
            results.append(ops.linear(x, weight))
    finally:
        active.set_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_weight_packed_for_other_lanes_is_refused(kernels: Kernels) -> None:
    with native.using(kernels):
        weight = packed.pack(QuantFormat.Q4_K, random_rows(QuantFormat.Q4_K, 16, 256), (16, 256))
    isa = "portable" if kernels.lanes == 16 else "avx512vnni"
    other = Kernels(kernels.library, kernels.quick, kernels.path, isa, native.ISA_NUMBERS[isa], 0)
    if not kernels.library.kc_supported(other.number):
        pytest.skip("only one width of lanes runs here")
    with native.using(other), pytest.raises(ValueError, match="pack it again"):
        ops.linear(torch.zeros(1, 256), weight)


def test_without_compiled_kernels_the_reference_computes_the_same() -> None:
    raw = random_rows(QuantFormat.Q5_K, 9, 512)
    with native.using(None):
        weight = packed.pack(QuantFormat.Q5_K, raw, (9, 512))
        x = torch.randn(4, 512)
        dense = torch.from_numpy(reference.dequantize(QuantFormat.Q5_K, raw, 512))
        torch.testing.assert_close(ops.linear(x, weight), x @ dense.T)


def test_wrong_arguments_are_named_with_their_numbers() -> None:
    weight = packed.pack(QuantFormat.Q4_K, random_rows(QuantFormat.Q4_K, 8, 512), (8, 512))
    with pytest.raises(ValueError, match="x has 256 columns, the weight takes 512"):
        ops.linear(torch.zeros(2, 256), weight)
    with pytest.raises(ValueError, match=r"bias must have shape \(8,\), got \(9,\)"):
        ops.linear(torch.zeros(2, 512), weight, torch.zeros(9))
    with pytest.raises(ValueError, match="contiguous float32"):
        ops.linear(torch.zeros(512, 2).T, weight)
    with pytest.raises(ValueError, match="contiguous float32"):
        ops.linear(torch.zeros(2, 512, dtype=torch.float64), weight)
    with pytest.raises(ValueError, match=r"rows 3\.\.8 are outside of 0\.\.7"):
        ops.embedding(torch.tensor([3, 8], dtype=torch.int32), weight)
    with pytest.raises(ValueError, match="needs 2304 bytes, got 2303"):
        packed.pack(QuantFormat.Q4_K, np.zeros(2303, np.uint8), (8, 512))
    with pytest.raises(ValueError, match="500 columns are not a positive multiple of Q4_K's block of 256"):
        packed.pack(QuantFormat.Q4_K, np.zeros(2304, np.uint8), (8, 500))
    with pytest.raises(ValueError, match="same number of columns"):
        packed.stack([weight, packed.pack(QuantFormat.F32, random_rows(QuantFormat.F32, 1, 3), (1, 3))])
    with pytest.raises(ValueError, match="GGML type 39 is not supported"):
        format_of_ggml_type(39)
