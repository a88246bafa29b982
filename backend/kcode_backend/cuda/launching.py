"""Starts kernels on torch's current stream without waiting for them: nothing here synchronises, so CUDA graphs can capture it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch

from kcode_backend.cuda import nvidia, sources
from kcode_backend.cuda.compiling import CudaUnavailable, cached_unit, compiler_version

Argument = torch.Tensor | None | ctypes.c_int32 | ctypes.c_int64 | ctypes.c_float
"""A tensor is passed as its address, None as a null pointer."""


MAX_SHARED_BYTES = 48 << 10
"""Of a block without asking for more."""


@dataclass(frozen=True)
class Shape:
    """Of a launch: blocks in x and y, threads of a block, and its dynamic shared memory."""

    blocks: tuple[int, int]
    threads: int
    shared_bytes: int = 0


class Launcher(Protocol):
    def launch(self, kernel: str, shape: Shape, arguments: Sequence[Argument]) -> None:
        """Returns at once; the kernel runs after what was started before on the same stream."""
        ...


class CudaLauncher:
    """The kernels of one GPU. A unit is compiled, or read from the cache, when the first of its kernels is launched:
    launch each once before a graph is captured."""

    def __init__(self, device: int) -> None:
        self._core = nvidia.core()
        self._index = device
        self._device = self._core.Device(device)
        self._device.set_current()
        capability = self._device.compute_capability
        self.architecture = architecture_of(capability.major, capability.minor)
        self._units: dict[str, nvidia.ObjectCode] = {}
        self._kernels: dict[str, nvidia.Kernel] = {}

    def launch(self, kernel: str, shape: Shape, arguments: Sequence[Argument]) -> None:
        stream = self._device.create_stream(_TorchStream(torch.cuda.current_stream(self._index).cuda_stream))
        config = self._core.LaunchConfig(grid=shape.blocks, block=shape.threads, shmem_size=shape.shared_bytes)
        self._core.launch(stream, config, self._kernel(kernel), *(_passed(argument) for argument in arguments))

    def _kernel(self, name: str) -> nvidia.Kernel:
        found = self._kernels.get(name)
        if found is None:
            found = self._kernels[name] = self._unit(sources.UNIT_OF[name]).get_kernel(name)
        return found

    def _unit(self, name: str) -> nvidia.ObjectCode:
        found = self._units.get(name)
        if found is None:
            found = self._units[name] = self._core.ObjectCode.from_cubin(cached_unit(name, self.architecture))
        return found


def architecture_of(major: int, minor: int) -> str:
    """NVRTC's name of a GPU's compute capability. CudaUnavailable for what is too old."""
    if (major, minor) < (8, 0):
        raise CudaUnavailable(f"the GPU has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer")
    # 9.0a is Hopper with its own instructions.
    return f"sm_{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")


@dataclass(frozen=True)
class _TorchStream:
    """torch's stream by the protocol of cuda-core."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self.handle)


def _passed(argument: Argument) -> nvidia.Scalar:
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    return 0 if argument is None else argument


def unavailable() -> str | None:
    """Why no kernel can run here, in one sentence with the next step; None when they can."""
    try:
        compiler_version()
    except CudaUnavailable as error:
        return str(error)
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA: install one that is built with it (see pytorch.org)"
    if not torch.cuda.is_available():
        return "torch finds no usable NVIDIA GPU: install NVIDIA's driver, or see nvidia-smi for what is wrong with it"
    try:
        architecture_of(*torch.cuda.get_device_capability())
    except CudaUnavailable as error:
        return str(error)
    return None


_chosen: ContextVar[Launcher | None] = ContextVar("chosen", default=None)


@contextmanager
def using(launcher: Launcher) -> Generator[None]:
    """Inside, the operations of cuda/ops.py run on `launcher`, whatever device their tensors are on."""
    token = _chosen.set(launcher)
    try:
        yield
    finally:
        _chosen.reset(token)


def launcher_for(device: torch.device) -> Launcher:
    """CudaUnavailable says why there is none."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    if device.type != "cuda":
        raise CudaUnavailable(f"the CUDA kernels need tensors on a GPU, these are on {device}")
    return _launcher(device.index)


@functools.cache
def _launcher(device: int) -> CudaLauncher:
    reason = unavailable()
    if reason is not None:
        raise CudaUnavailable(reason)
    return CudaLauncher(device)
