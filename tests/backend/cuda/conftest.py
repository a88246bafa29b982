"""What the operations run on: an emulation of the GPU's threads by g++ everywhere, and a real GPU where there is one."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kcode_backend.cuda import launching, sources
from kcode_backend.cuda.launching import Argument, Shape
from kcode_backend.kernels.build import find_compiler

HERE = Path(__file__).resolve().parent
WRAPPER = """
extern "C" void emulate_{name}(int x, int y, int threads, int shared, void **arguments) {{
    emulate({name}, x, y, threads, shared, arguments);
}}
"""


@dataclass(frozen=True)
class EmulatedLauncher:
    """Runs the kernels of csrc/cuda on CPU tensors, to the end, before it returns."""

    library: ctypes.CDLL

    def launch(self, kernel: str, shape: Shape, arguments: Sequence[Argument]) -> None:
        values = [
            ctypes.c_void_p(argument.data_ptr() if isinstance(argument, torch.Tensor) else None)
            if argument is None or isinstance(argument, torch.Tensor)
            else argument
            for argument in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        getattr(self.library, f"emulate_{kernel}")(*shape.blocks, shape.threads, shape.shared_bytes, pointers)


def _emulated_source() -> str:
    includes = "".join(f'#include "{unit}.cu"\n' for unit in sources.UNITS)
    return '#include "device.cuh"\n' + includes + "".join(WRAPPER.format(name=name) for name in sources.UNIT_OF)


@pytest.fixture(scope="session")
def emulation(request: pytest.FixtureRequest) -> EmulatedLauncher:
    """Compiled once per version of the sources; kept in pytest's cache folder."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("the emulation needs a C++ compiler: c++, g++ or clang++")
    source = _emulated_source()
    texts = [source, (HERE / "emulated.h").read_text(), *(sources.unit_text(unit) for unit in sources.UNITS)]
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("kcode-emulated-cuda")
    library = folder / f"emulated-{hashlib.sha256(''.join(texts).encode()).hexdigest()[:16]}.so"
    if not library.is_file():
        for stale in folder.glob("emulated-*.so"):
            stale.unlink()
        partial = library.with_suffix(".partial")
        command = [
            compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-DKC_EMULATED", "-x", "c++", "-", "-o", str(partial),
            f"-I{sources.csrc_folder()}", f"-I{HERE}",
            "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Werror",
        ]  # fmt: skip
        done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        partial.rename(library)
    return EmulatedLauncher(ctypes.CDLL(str(library)))


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the operations under test run."""
    if request.param == "gpu":
        reason = launching.unavailable()
        if reason is not None:
            pytest.skip(reason)
        yield torch.device("cuda")
        return
    with launching.using(request.getfixturevalue("emulation")):
        yield torch.device("cpu")
