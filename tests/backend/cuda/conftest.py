"""What the operations run on: an emulation of the GPU's threads by g++ everywhere, and a real GPU where there is one."""

from __future__ import annotations

import ctypes
import hashlib
import os
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
extern "C" void emulate_{name}(bool backwards, int x, int y, int threads, int shared, void **arguments) {{
    emulate({name}, backwards, x, y, threads, shared, arguments);
}}
"""


@dataclass(frozen=True)
class EmulatedLauncher:
    """Runs the kernels of csrc/cuda on CPU tensors, to the end, before it returns."""

    library: ctypes.CDLL
    backwards: bool
    """Whether the last thread of a block goes first. A missing barrier shows in one of the orders, if not in both."""

    def launch(self, kernel: str, shape: Shape, arguments: Sequence[Argument]) -> None:
        values = [
            ctypes.c_void_p(argument.data_ptr() if isinstance(argument, torch.Tensor) else None)
            if argument is None or isinstance(argument, torch.Tensor)
            else argument
            for argument in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        getattr(self.library, f"emulate_{kernel}")(self.backwards, *shape.blocks, shape.threads, shape.shared_bytes, pointers)


def _emulated_source() -> str:
    includes = "".join(f'#include "{unit}.cu"\n' for unit in sources.UNITS)
    return '#include "device.cuh"\n' + includes + "".join(WRAPPER.format(name=name) for name in sources.UNIT_OF)


def compiled(request: pytest.FixtureRequest, name: str, source: str, *flags: str) -> Path:
    """`source`, which includes kernels and emulated.h, compiled once per version of all their texts; kept in pytest's cache."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("the emulation needs a C++ compiler: c++, g++ or clang++")
    headers = (HERE / "emulated.h", *sources.csrc_folder().glob("*.cu*"))
    texts = [source, *flags, *(path.read_text() for path in sorted(headers))]
    cache = request.config.cache
    assert cache is not None
    folder = Path(cache.mkdir("kcode-emulated-cuda"))
    target = folder / f"{name}-{hashlib.sha256(''.join(texts).encode()).hexdigest()[:16]}"
    if not target.is_file():
        for stale in sorted(folder.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)[:-1]:
            stale.unlink(missing_ok=True)
        partial = folder / f".{os.getpid()}-{name}"
        command = [
            compiler, "-std=c++17", "-O1", *flags, "-DKC_EMULATED", "-x", "c++", "-", "-o", str(partial),
            f"-I{sources.csrc_folder()}", f"-I{HERE}",
            # Jumping between the fibres' stacks is what fortified longjmp refuses.
            "-U_FORTIFY_SOURCE",
            "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Werror",
        ]  # fmt: skip
        done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        partial.rename(target)
    return target


@pytest.fixture(scope="session")
def emulation(request: pytest.FixtureRequest) -> ctypes.CDLL:
    """All kernels, emulated."""
    return ctypes.CDLL(str(compiled(request, "kernels", _emulated_source(), "-fPIC", "-shared")))


@pytest.fixture(params=["forwards", "backwards", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the operations under test run: emulated, with the threads in either order, or on a GPU."""
    if request.param == "gpu":
        reason = launching.unavailable()
        if reason is not None:
            pytest.skip(reason)
        yield torch.device("cuda")
        return
    with launching.using(EmulatedLauncher(request.getfixturevalue("emulation"), request.param == "backwards")):
        yield torch.device("cpu")
