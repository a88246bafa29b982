"""What kcode uses of NVIDIA's cuda-core, which is an optional package: its types, and the module itself when it is called for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from ctypes import c_float, c_int32, c_int64
from io import StringIO
from typing import Protocol, cast

Scalar = int | c_int32 | c_int64 | c_float
"""An argument of a kernel; addresses are ints."""


class Kernel(Protocol):
    """A function in a GPU's memory."""


class ObjectCode(Protocol):
    @property
    def code(self) -> bytes: ...

    def get_kernel(self, name: str) -> Kernel: ...


class ObjectCodes(Protocol):
    def from_cubin(self, module: bytes) -> ObjectCode: ...


class Program(Protocol):
    def compile(self, target_type: str, *, logs: StringIO) -> ObjectCode: ...


class Stream(Protocol):
    """cuda-core's own; made from any object with `__cuda_stream__`."""


class Capability(Protocol):
    major: int
    minor: int


class Device(Protocol):
    compute_capability: Capability

    def set_current(self) -> None: ...

    def create_stream(self, obj: ForeignStream) -> Stream: ...


class ForeignStream(Protocol):
    def __cuda_stream__(self) -> tuple[int, int]:
        """The protocol's version, 0, and the stream's handle."""
        ...


class Options(Protocol):
    """How a program is compiled, or a kernel launched."""


class Core(Protocol):
    """The module `cuda.core`."""

    ObjectCode: ObjectCodes
    Device: Callable[[int], Device]
    Program: Callable[[str, str, Options], Program]
    ProgramOptions: Callable[..., Options]
    LaunchConfig: Callable[..., Options]

    def launch(self, stream: Stream, config: Options, kernel: Kernel, *arguments: Scalar) -> None: ...


def core() -> Core:
    """ModuleNotFoundError where it is not installed."""
    return cast(Core, importlib.import_module("cuda.core"))


def library_errors() -> tuple[type[RuntimeError], ...]:
    """What is raised when a library of NVIDIA's is on no path."""
    return (cast(type[RuntimeError], importlib.import_module("cuda.pathfinder").DynamicLibNotFoundError),)
