"""The AMX kernels, on tile registers or on their emulation (amx_emulated.h), and the emulation against numpy.

Two yardsticks. Against the true weights and activations the error is that of rounding both to bf16: each by at most 2^-8, so
the product by about 2^-7 of |x||w| whatever the values (Cauchy-Schwarz). Against the product of the *rounded* numbers what is
left is the order of a float32 sum, so that this one fails too if another kernel has run.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kcode_backend.kernels import build, native, ops, packed, reference
from kcode_backend.kernels.native import Kernels
from kcode_backend.kernels.packed import PackedExperts, PackedWeight
from kcode_backend.weights.quant import QuantFormat
from tests.backend.kernels.blocks import columns_for, random_rows
from tests.backend.kernels.test_moe import largest_error, random_experts, route

# Emulated, it compiles for half a minute the first time, as AVX-512 does.
pytestmark = pytest.mark.slow

FORMATS = [quant for quant in QuantFormat if quant is not QuantFormat.F32]
AMX_ROWS = 32  # as in amx_linear.h
# A weight that lies in the middle between two bf16 may be rounded up by one and down by the other, when its scale and minimum are
# multiplied in two steps instead of one; that is 2^-7 of one weight in hundreds.
TOLERANCE, TOLERANCE_ROUNDED = 1.01 * 2.0**-7, 1e-4
# Of the largest value of a token: hidden is rounded once more, and the largest of thousands of errors counts.
TOLERANCE_MOE, TOLERANCE_MOE_ROUNDED = 0.02, 1e-3


@pytest.fixture
def matrix(amx: Kernels) -> Iterator[Kernels]:
    with native.using(amx):
        yield amx


@pytest.fixture
def emulated(amx: Kernels) -> Kernels:
    if not hasattr(amx.library, "kc_emulated_product"):
        pytest.skip("this CPU has AMX: nothing is emulated")
    return amx


def number(library: ctypes.CDLL, name: str) -> ctypes.c_int:
    return ctypes.c_int.in_dll(library, name)


def random_weight(quant: QuantFormat, rows: int, columns: int) -> tuple[PackedWeight, torch.Tensor]:
    """The packed weight and what it stands for."""
    raw = random_rows(quant, rows, columns, seed=rows)
    return packed.pack(quant, raw, (rows, columns)), torch.from_numpy(reference.dequantize(quant, raw, columns))


def alike(quant: QuantFormat) -> tuple[QuantFormat, QuantFormat, QuantFormat]:
    return quant, quant, quant


def assert_bf16_product(actual: torch.Tensor, x: torch.Tensor, dense: torch.Tensor, bias: torch.Tensor | None) -> None:
    size = x.double().norm(dim=1)[:, None] * dense.double().norm(dim=1)[None, :]
    added = 0.0 if bias is None else bias.double()
    for tolerance, left, right in ((TOLERANCE, x, dense), (TOLERANCE_ROUNDED, x.bfloat16(), dense.bfloat16())):
        error = (actual.double() - left.double() @ right.double().T - added).abs() / size.clamp_min(1e-12)
        assert float(error.max()) < tolerance, f"{float(error.max()):.2e} of |x||w| at {tuple(actual.shape)}, K {x.shape[1]}"


def check(quant: QuantFormat, rows: int, columns: int, tokens: int) -> None:
    weight, dense = random_weight(quant, rows, columns)
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, columns, generator=generator)
    bias = torch.randn(rows, generator=generator) if tokens % 2 else None
    assert_bf16_product(ops.linear(x, weight, bias), x, dense, bias)


def manuals_product(
    sums: npt.NDArray[np.float32], a: npt.NDArray[np.uint16], b: npt.NDArray[np.uint16]
) -> npt.NDArray[np.float32]:
    """TDPBF16PS as Intel's manual writes it: two chains of fused multiply-adds (a product of two bf16 is exact in float32), their
    sum, then the sum with what was there; denormals are zero. a: [16, 32]; b: [16, 32], pairs of columns of 16 rows."""

    def flushed(value: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.where(np.abs(value) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), value), value).astype(np.float32)

    def widened(value: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        return flushed((value.astype(np.uint32) << 16).view(np.float32))

    x, w = widened(a), widened(b)
    chains = np.zeros((2, 16, 16), dtype=np.float32)
    for k in range(16):
        for side in range(2):
            chains[side] = flushed(chains[side] + np.outer(x[:, 2 * k + side], w[k, side::2]))
    return flushed(flushed(sums) + flushed(chains[0] + chains[1]))


def test_the_emulated_product_is_the_manuals(emulated: Kernels) -> None:
    config = np.zeros(128, dtype=np.uint8)
    config = config[-config.ctypes.data % 64 :][:64]
    config[0], config[16:32:2], config[48:56] = 1, 64, 16
    rng = np.random.default_rng(4)
    for powers in ((0, 0, 0), (60, -10, 50), (-62, -62, -124)):  # the last makes products and sums denormal
        a, b = (
            (np.ldexp(rng.standard_normal((16, 32)).astype(np.float32), power).view(np.uint32) >> 16).astype(np.uint16)
            for power in powers[:2]
        )
        sums = np.ldexp(rng.standard_normal((16, 16)).astype(np.float32), powers[2])
        a[3, 5], b[7, 9] = 0x0042, 0x8001  # denormals
        expected = manuals_product(sums, a, b)
        emulated.library.kc_emulated_product(*(ctypes.c_void_p(array.ctypes.data) for array in (config, sums, a, b)))
        assert np.array_equal(sums, expected)
        assert np.any(sums != 0)


@pytest.mark.usefixtures("matrix")
def test_linear_is_the_product_of_bf16() -> None:
    """One odd shape of each kind of expansion; `test_linear_in_every_format_and_shape` has the rest."""
    for quant in (QuantFormat.Q4_K, QuantFormat.Q6_K, QuantFormat.Q8_0, QuantFormat.Q5_1, QuantFormat.F16):
        check(quant, 51, columns_for(quant, 512) + (0 if quant.block_elements == 256 else 32), 35)


@pytest.mark.parametrize("quant", FORMATS, ids=lambda quant: quant.name)
@pytest.mark.usefixtures("matrix")
def test_linear_in_every_format_and_shape(quant: QuantFormat) -> None:
    for rows, about in ((1, 256), (7, 512), (17, 256), (33, 1280), (131, 768), (270, 256)):
        for tokens in (32, 33, 48, 49, 64, 70):
            check(quant, rows, columns_for(quant, about), tokens)
    for tokens in range(AMX_ROWS, 71):
        check(quant, 40, columns_for(quant, 256), tokens)


@pytest.mark.usefixtures("matrix")
def test_columns_need_not_fill_a_tile_or_a_block() -> None:
    for quant in FORMATS:
        step = quant.block_elements if quant.is_quantized else 1
        for columns in {step, 3 * step, 9 * step, 11 * step, 31, 33, 255, 257, 289}:
            if columns % step == 0:
                check(quant, 37, columns, 37)


@pytest.mark.usefixtures("matrix")
def test_many_tokens_take_several_passes() -> None:
    for tokens in (511, 513, 545, 1030):
        check(QuantFormat.Q4_K, 70, 512, tokens)


@pytest.mark.usefixtures("matrix")
def test_stacked_weights_give_their_outputs_side_by_side() -> None:
    shapes = ((24, QuantFormat.Q4_K), (5, QuantFormat.Q6_K), (9, QuantFormat.Q8_0), (3, QuantFormat.BF16))
    parts = [random_weight(quant, rows, 512) for rows, quant in shapes]
    stacked, dense = packed.stack([part for part, _ in parts]), torch.cat([dense for _, dense in parts])
    x, bias = torch.randn(34, 512), torch.randn(41)
    assert_bf16_product(ops.linear(x, stacked, bias), x, dense, bias)


@pytest.mark.usefixtures("matrix")
def test_float32_weights_keep_their_precision() -> None:
    weight, dense = random_weight(QuantFormat.F32, 20, 300)
    x = torch.randn(40, 300)
    torch.testing.assert_close(ops.linear(x, weight), (x.double() @ dense.double().T).float(), rtol=1e-4, atol=1e-4)


def test_few_rows_are_left_to_the_other_kernels_to_the_bit(matrix: Kernels) -> None:
    weight, _ = random_weight(QuantFormat.Q5_K, 40, 512)
    x = torch.randn(AMX_ROWS, 512)
    other = native.load(matrix.path, "avx512vnni" if matrix.library.kc_supported(2) else "portable")
    with native.using(other):
        expected = ops.linear(x, weight)
    assert torch.equal(ops.linear(x[:-1], weight), expected[:-1])
    assert not torch.equal(ops.linear(x, weight), expected)


def test_in_a_pass_each_row_has_the_numbers_of_its_role(matrix: Kernels) -> None:
    """Whatever is computed with it: decoding rows those of the other kernels, rows of prompts bf16."""
    weight, _ = random_weight(QuantFormat.Q4_K, 40, 512)
    experts = random_experts(alike(QuantFormat.INT4), 2, 64, 96)
    x, y, (ids, shares) = torch.randn(90, 512), torch.randn(90, 64), route(90, 2, 2)
    many, many_experts = ops.linear(x, weight), ops.moe(y, experts, ids, shares)
    other = native.load(matrix.path, "avx512vnni" if matrix.library.kc_supported(2) else "portable")
    with native.using(other):
        few, few_experts = ops.linear(x, weight), ops.moe(y, experts, ids, shares)
    for rows in (0, 1, 50, 90, 100):
        with ops.decoding(rows):
            assert torch.equal(ops.linear(x, weight), torch.cat((few[:rows], many[rows:])))
            assert torch.equal(ops.linear(x[:1], weight), (few if rows else many)[:1])
            if rows in (0, 1, 50, 90):
                expected = torch.cat((few_experts[:rows], many_experts[rows:]))
                assert torch.equal(ops.moe(y, experts, ids, shares), expected)
    assert torch.equal(ops.linear(x[:1], weight), few[:1])


@pytest.mark.usefixtures("matrix")
def test_tokens_do_not_influence_each_other() -> None:
    for quant in (QuantFormat.Q4_K, QuantFormat.F16):
        weight, _ = random_weight(quant, 40, 512)
        x = torch.randn(70, 512)
        together = ops.linear(x, weight)
        for tokens in (32, 33, 49):
            assert torch.equal(ops.linear(x[:tokens], weight), together[:tokens])
        assert torch.equal(ops.linear(x[38:], weight), together[38:])


def test_thread_count_does_not_change_the_result_and_no_thread_keeps_tiles(matrix: Kernels) -> None:
    weight, _ = random_weight(QuantFormat.Q6_K, 333, 256)
    experts = random_experts(alike(QuantFormat.Q4_0), 3, 64, 96)
    x, y = torch.randn(40, 256), torch.randn(60, 64)
    before = matrix.threads()
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for threads in (1, 2, 5):
            matrix.set_threads(threads)
            results.append((ops.linear(x, weight), ops.moe(y, experts, *route(60, 3, 2))))
            if hasattr(matrix.library, "kc_emulated_product"):
                assert number(matrix.library, "kc_emulated_configured").value == 0
    finally:
        matrix.set_threads(before)
    for linear, moe in results[1:]:
        assert torch.equal(linear, results[0][0])
        assert torch.equal(moe, results[0][1])


def test_the_probe_counts_its_products(matrix: Kernels) -> None:
    assert matrix.matrix_probe(2) == 2 * 65536 * matrix.threads()
    assert native.load(matrix.path, "portable").matrix_probe(2) == 0


def test_without_permission_the_next_best_kernels_run_and_the_reason_is_told(emulated: Kernels) -> None:
    state = number(emulated.library, "kc_emulated_amx_state")
    try:
        state.value = 4
        assert native.load(emulated.path).isa != "amx"
        with pytest.raises(ValueError, match=r"KCODE_CPU_ISA=amx does not run .*AMX is refused by the operating system"):
            native.load(emulated.path, "amx")
    finally:
        state.value = 0
    assert native.load(emulated.path).isa == "amx"


def test_each_thread_asks_for_permission_once(emulated: Kernels) -> None:
    asked = number(emulated.library, "kc_emulated_permissions")
    emulated.matrix_probe(1)
    first = asked.value
    for _ in range(20):
        emulated.matrix_probe(1)
    assert 1 <= first <= asked.value <= 5


def test_the_environment_can_forbid_and_demand_amx() -> None:
    kernels = native.active()
    if kernels is None:
        pytest.skip(native.describe().reason)
    program = "from kcode_backend.kernels import native; report = native.describe(); print(report.isa, '|', report.amx)"

    def told(isa: str) -> str:
        environment = {**os.environ, "KCODE_CPU_ISA": isa}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=120
        )
        return (done.stdout or done.stderr).strip().splitlines()[-1]

    assert told("portable") == "portable | not used: KCODE_CPU_ISA=portable"
    if kernels.library.kc_supported(native.ISA_NUMBERS["amx"]):
        assert told("amx") == "amx | in use"
    else:
        assert re.search(r"KCODE_CPU_ISA=amx does not run on this CPU; it runs portable.*; AMX is ", told("amx"))


def test_the_library_has_the_tile_instructions() -> None:
    kernels, compiler = native.active(), build.find_compiler()
    if kernels is None or compiler is None or not build.knows_amx(compiler) or shutil.which("objdump") is None:
        pytest.skip("needs the kernels, a compiler that knows AMX and objdump")
    if kernels.library.kc_amx_state() == 1:
        pytest.skip("the library was made by an older compiler")
    code = subprocess.run(["objdump", "-d", str(kernels.path)], capture_output=True, text=True, check=True, timeout=120).stdout
    found = set(re.findall(r"\b(ldtilecfg|tilerelease|tilezero|tileloadd|tilestored|tdpbf16ps|vcvtne2ps2bf16|vpermb)\b", code))
    assert len(found) == 8


def test_an_older_compiler_makes_a_library_without_amx(tmp_path: Path) -> None:
    compiler, csrc = build.find_compiler(), native.csrc_folder()
    if compiler is None or csrc is None or len(build.instruction_sets()) == 1:
        pytest.skip("needs a C++ compiler for x86-64")
    older = tmp_path / "c++"
    older.write_text(f'#!/bin/sh\ncase "$*" in *-mamx-tile*) echo "error: -mamx-tile" >&2; exit 1;; esac\nexec {compiler} "$@"\n')
    older.chmod(0o755)
    assert not build.knows_amx(str(older))
    build.compile_library(csrc, tmp_path / "library.so", str(older))
    kernels = native.load(tmp_path / "library.so")
    assert kernels.isa != "amx"
    with pytest.raises(ValueError, match="AMX is not part of this library"):
        native.load(tmp_path / "library.so", "amx")


def rounded_moe(experts: PackedExperts, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """float64, with weights, activations and hidden rounded to bf16."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for expert in range(experts.count):
        tokens, places = (ids == expert).nonzero(as_tuple=True)
        gate, up, down = (
            torch.from_numpy(packed.dequantize(each[expert])).bfloat16().double()
            for each in (experts.gates, experts.ups, experts.downs)
        )
        inputs = x[tokens].bfloat16().double()
        hidden = (torch.nn.functional.silu(inputs @ gate.T) * (inputs @ up.T)).float().bfloat16().double()
        out.index_add_(0, tokens, (hidden @ down.T) * weights[tokens, places, None].double())
    return out


def check_moe(experts: PackedExperts, tokens: int, chosen: int) -> None:
    """Every expert has many tokens."""
    x = torch.randn(tokens, experts.hidden, generator=torch.Generator().manual_seed(tokens)) * 0.3
    ids, weights = route(tokens, experts.count, chosen)
    assert int(torch.bincount(ids.flatten().long()).min()) >= AMX_ROWS
    assert largest_error(experts, x, ids, weights) < TOLERANCE_MOE
    expected = rounded_moe(experts, x, ids, weights)
    error = (ops.moe(x, experts, ids, weights).double() - expected).abs().amax(dim=1) / expected.abs().amax(dim=1)
    assert float(error.max()) < TOLERANCE_MOE_ROUNDED


@pytest.mark.usefixtures("matrix")
def test_experts_with_many_tokens_follow_float64() -> None:
    check_moe(random_experts((QuantFormat.INT4, QuantFormat.Q8_0, QuantFormat.F16), 3, 96, 160), 60, 2)


@pytest.mark.parametrize("quant", FORMATS, ids=lambda quant: quant.name)
@pytest.mark.usefixtures("matrix")
def test_experts_in_every_format(quant: QuantFormat) -> None:
    check_moe(random_experts(alike(quant), 3, 256, 512), 70, 2)


@pytest.mark.usefixtures("matrix")
def test_experts_of_odd_sizes_and_of_more_tokens_than_one_pass() -> None:
    dense = (QuantFormat.F16, QuantFormat.BF16, QuantFormat.F16)
    for hidden, inner in ((37, 21), (21, 37), (300, 50)):
        check_moe(random_experts(dense, 2, hidden, inner), 40, 2)
    check_moe(random_experts(alike(QuantFormat.Q4_0), 2, 64, 96), 600, 2)
    check_moe(random_experts(alike(QuantFormat.Q4_1), 5, 64, 288), 300, 3)


@pytest.mark.usefixtures("matrix")
def test_experts_with_few_tokens_are_added_too() -> None:
    experts = random_experts(alike(QuantFormat.Q5_0), 4, 64, 96)
    x, weights = torch.randn(50, 64) * 0.3, torch.rand(50, 2) + 0.1
    ids = torch.tensor([[1, 3 if token % 7 else 0] for token in range(50)], dtype=torch.int32)
    assert largest_error(experts, x, ids, weights) < 2 * TOLERANCE_MOE
    few = torch.tensor([[0, 2]] * 5 + [[1, 1]] * 45, dtype=torch.int32)
    assert largest_error(experts, x, few, weights) < 2 * TOLERANCE_MOE


@pytest.mark.usefixtures("matrix")
def test_experts_that_nobody_chose_are_not_read() -> None:
    experts = random_experts(alike(QuantFormat.Q4_K), 3, 256, 256)
    x, ids, weights = torch.randn(40, 256), torch.full((40, 1), 1, dtype=torch.int32), torch.ones(40, 1)
    expected = ops.moe(x, experts, ids, weights)
    for part in (0, 1, 2, 6, 7, 8):
        experts.descriptor[part].data = None
    assert torch.equal(ops.moe(x, experts, ids, weights), expected)
