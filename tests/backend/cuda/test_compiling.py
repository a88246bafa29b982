"""The CUDA kernels through real compilers, for every architecture, without a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from kcode_backend.cuda import compiling, launching, sources
from kcode_backend.cuda.compiling import CudaUnavailable

UNITS = tuple(sources.UNITS)


def needs_nvrtc() -> None:
    try:
        compiling.compiler_version()
    except CudaUnavailable as error:
        pytest.skip(str(error))


def test_every_kernel_of_the_sources_is_listed() -> None:
    folder = sources.csrc_folder()
    assert sorted(path.stem for path in folder.glob("*.cu")) == sorted(sources.UNITS)


def test_a_unit_is_one_text_without_includes() -> None:
    for unit in UNITS:
        text = sources.unit_text(unit)
        assert "#include" not in text
        assert text.count("KC_DEVICE float silu(") == 1


def test_the_key_of_a_unit_follows_its_text_and_the_compiler() -> None:
    keys = {sources.unit_key(unit, architecture, "1") for unit in UNITS for architecture in compiling.ARCHITECTURES}
    assert len(keys) == len(UNITS) * len(compiling.ARCHITECTURES)
    assert (
        sources.unit_key("norm", "sm_80", "1")
        == sources.unit_key("norm", "sm_80", "1")
        not in {sources.unit_key("norm", "sm_80", "2")}
    )


def check_usage(unit: str, usages: tuple[compiling.Usage, ...]) -> None:
    """Every kernel was compiled and keeps its values in registers."""
    assert sorted(usage.kernel for usage in usages) == sorted(sources.UNITS[unit])
    for usage in usages:
        assert (usage.stack_bytes, usage.spilled_bytes) == (0, 0), usage


@pytest.mark.parametrize("architecture", compiling.ARCHITECTURES)
@pytest.mark.parametrize("unit", UNITS)
def test_nvrtc_compiles_every_kernel_without_spilling(unit: str, architecture: str) -> None:
    needs_nvrtc()
    code, usages = compiling.compile_unit(unit, architecture)
    assert code.startswith(b"\x7fELF")
    check_usage(unit, usages)


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_nvcc_compiles_every_kernel_without_spilling(unit: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    source = tmp_path / f"{unit}.cu"
    source.write_text(sources.unit_text(unit))
    for architecture in compiling.ARCHITECTURES:
        command = [
            nvcc,
            "-std=c++17",
            "-cubin",
            f"-arch={architecture}",
            "-Xptxas",
            "-v",
            str(source),
            "-o",
            str(tmp_path / "cubin"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        check_usage(unit, compiling.parse_usage(done.stderr))


def test_a_compiled_unit_is_read_from_the_cache_and_nothing_else_is_left_there(tmp_path: Path) -> None:
    needs_nvrtc()
    first = compiling.cached_unit("norm", "sm_80", tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == first
    file.write_bytes(b"from the cache")
    assert compiling.cached_unit("norm", "sm_80", tmp_path) == b"from the cache"


def test_without_cuda_core_the_reason_names_what_to_install() -> None:
    if find_spec("cuda") is not None:
        pytest.skip("cuda-core is installed here")
    with pytest.raises(CudaUnavailable, match=r"pip install 'kcode-agent\[cuda\]'"):
        compiling.compiler_version()


def test_each_missing_package_is_named() -> None:
    installed = {"cuda-core": "1.2.2", "cuda-bindings": "13.5.0", "nvidia-cuda-nvrtc": "13.5.37"}
    assert compiling.described(installed) == "cuda-core 1.2.2, cuda-bindings 13.5.0, nvidia-cuda-nvrtc 13.5.37"
    for missing, said in (
        ("cuda-core", "need cuda-core:"),
        ("cuda-bindings", "need cuda-bindings:"),
        ("nvidia-cuda-nvrtc", "NVRTC"),
    ):
        with pytest.raises(CudaUnavailable, match=said):
            compiling.described({name: number for name, number in installed.items() if name != missing})


def test_a_report_that_is_not_understood_is_an_error() -> None:
    with pytest.raises(ValueError, match="not understood"):
        compiling.parse_usage("ptxas info : Compiling entry function 'k' for 'sm_80'\nsomething new\n")


def test_importing_the_operations_needs_no_cuda_package() -> None:
    program = "import sys; import kcode_backend.cuda.ops; sys.exit('cuda.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0


def test_the_architecture_follows_the_gpu_and_an_old_one_is_refused() -> None:
    assert [launching.architecture_of(*capability) for capability in ((8, 0), (8, 9), (9, 0), (12, 0))] == [
        "sm_80",
        "sm_89",
        "sm_90a",
        "sm_120",
    ]
    with pytest.raises(CudaUnavailable, match=r"capability 7\.5"):
        launching.architecture_of(7, 5)
