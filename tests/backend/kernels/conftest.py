"""The instruction sets that can run here, the AVX-512 one emulated by SIMDe where the CPU lacks it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcode_backend.kernels import build, native
from kcode_backend.kernels.native import Kernels


def _loaded() -> Kernels:
    kernels = native.active()
    if kernels is None:
        pytest.skip(native.describe().reason)
    return kernels


def _emulated(folder: Path) -> Kernels:
    compiler = build.find_compiler()
    csrc = native.csrc_folder()
    assert csrc is not None
    if compiler is None:
        pytest.skip("AVX-512 is tested through SIMDe, which needs a C++ compiler")
    check = subprocess.run(
        [compiler, "-x", "c++", "-E", "-"], input=b"#include <simde/x86/avx512.h>\n", capture_output=True, check=False, timeout=60
    )
    if check.returncode:
        pytest.skip("AVX-512 is tested through SIMDe, whose headers are not installed (Debian: libsimde-dev)")
    target = folder / f"emulated-{build.source_hash(csrc)}.so"
    if not target.is_file():
        build.compile_library(csrc, target, compiler, emulate_avx512=True)
    return native.load(target, "avx512vnni")


@pytest.fixture(scope="session")
def emulation_folder(request: pytest.FixtureRequest) -> Path:
    """Kept between runs by pytest's cache folder, so that the emulated library is compiled once per version of the sources."""
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("kcode-emulated-kernels")
    for stale in sorted(folder.glob("emulated-*.so"))[:-2]:
        stale.unlink()
    return Path(folder)


def _avx512_runs_here() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512_vnni" in cpuinfo.read_text()


# Emulated, it compiles for about a minute the first time.
AVX512 = pytest.param("avx512vnni", marks=() if _avx512_runs_here() else pytest.mark.slow)


@pytest.fixture(scope="session", params=["portable", "avx2", AVX512])
def kernels(request: pytest.FixtureRequest, emulation_folder: Path) -> Kernels:
    isa: str = request.param
    if isa not in build.instruction_sets():
        pytest.skip(f"{isa} belongs to another architecture")
    loaded = _loaded()
    number = native.ISA_NUMBERS[isa]
    if loaded.library.kc_supported(number):
        return native.load(loaded.path, isa)
    if isa == "avx512vnni" and shutil.which("c++"):
        return _emulated(emulation_folder)
    pytest.skip(f"this CPU does not run {isa}")


@pytest.fixture
def active(kernels: Kernels) -> Iterator[Kernels]:
    """The kernels under test are the ones that ops use."""
    with native.using(kernels):
        yield kernels
