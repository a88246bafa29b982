"""The instruction sets that can run here; AVX-512 (by SIMDe) and AMX (amx_emulated.h) are emulated where the CPU lacks them."""

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


def _emulated(folder: Path, isa: str) -> Kernels:
    compiler = build.find_compiler()
    csrc = native.csrc_folder()
    assert csrc is not None
    if compiler is None:
        pytest.skip(f"{isa} is emulated here, which needs a C++ compiler")
    target = folder / f"emulated-{isa}-{build.source_hash(csrc)}.so"
    if not target.is_file():
        build.compile_library(csrc, target, compiler, emulate=isa)
    return native.load(target, isa)


def _emulated_avx512(folder: Path) -> Kernels:
    check = subprocess.run(
        ["c++", "-x", "c++", "-E", "-"], input=b"#include <simde/x86/avx512.h>\n", capture_output=True, check=False, timeout=60
    )
    if check.returncode:
        pytest.skip("AVX-512 is tested through SIMDe, whose headers are not installed (Debian: libsimde-dev)")
    return _emulated(folder, "avx512vnni")


@pytest.fixture(scope="session")
def emulation_folder(request: pytest.FixtureRequest) -> Path:
    """Kept between runs by pytest's cache folder, so that the emulated library is compiled once per version of the sources."""
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("kcode-emulated-kernels")
    for isa in build.EMULATED_FLAGS:
        libraries = sorted(folder.glob(f"emulated-{isa}-*.so"), key=lambda library: library.stat().st_mtime)
        for stale in libraries[:-2]:
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
        return _emulated_avx512(emulation_folder)
    pytest.skip(f"this CPU does not run {isa}")


@pytest.fixture(scope="session")
def amx(emulation_folder: Path) -> Kernels:
    """The kernels with AMX, emulated where the CPU lacks it (`kc_emulated_configured` is then in the library)."""
    loaded = _loaded()
    if loaded.library.kc_supported(native.ISA_NUMBERS["amx"]):
        return native.load(loaded.path, "amx")
    return _emulated(emulation_folder, "amx")


@pytest.fixture
def active(kernels: Kernels) -> Iterator[Kernels]:
    """The kernels under test are the ones that ops use."""
    with native.using(kernels):
        yield kernels
