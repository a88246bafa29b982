"""Kernels compiled at first use by NVRTC, through NVIDIA's cuda-core, and kept in the user's cache folder.

Compiling needs neither a GPU nor a driver nor CUDA's toolkit: the wheels of `kcode-agent[cuda]` bring the compiler.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs

from kcode_backend.cuda import nvidia, sources

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a")
"""Those that the tests compile for."""
_FUNCTION = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_REQUIRED = ("cuda-core", "cuda-bindings")
_NVRTC = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")


class CudaUnavailable(Exception):
    """What is missing and how to get it, in one sentence."""


@dataclass(frozen=True)
class Usage:
    """What the assembler says about one kernel."""

    kernel: str
    registers: int
    stack_bytes: int
    spilled_bytes: int


def compiler_version() -> str:
    """Of the compiler's packages; CudaUnavailable when one is missing."""
    found: dict[str, str] = {}
    for name in (*_REQUIRED, *_NVRTC):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return described(found)


def described(versions: Mapping[str, str]) -> str:
    """As compiler_version, of the installed packages among those that matter."""
    for name in _REQUIRED:
        if name not in versions:
            raise CudaUnavailable(f"the CUDA kernels need {name}: pip install 'kcode-agent[cuda]'")
    if not any(name in versions for name in _NVRTC):
        raise CudaUnavailable("NVRTC is not installed: pip install 'cuda-core[cu13]', or [cu12] for a CUDA 12 torch and driver")
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def compile_unit(unit: str, architecture: str) -> tuple[bytes, tuple[Usage, ...]]:
    """The unit's machine code (cubin) and what each of its kernels uses. Takes about three seconds at most."""
    compiler_version()
    core = nvidia.core()
    options = core.ProgramOptions(name=f"{unit}.cu", arch=architecture, std="c++17", ptxas_options=["-v"])
    log = io.StringIO()
    try:
        code = core.Program(sources.unit_text(unit), "c++", options).compile("cubin", logs=log).code
    except nvidia.library_errors() as error:
        raise CudaUnavailable(
            f"NVRTC's library does not load: {str(error).splitlines()[0]}; reinstall nvidia-cuda-nvrtc"
        ) from error
    return code, parse_usage(log.getvalue())


def parse_usage(log: str) -> tuple[Usage, ...]:
    """From the lines of `ptxas -v`."""
    usages: list[Usage] = []
    for part in re.split(r"(?=Compiling entry function)", log)[1:]:
        name, spills, registers = _FUNCTION.search(part), _SPILLS.search(part), _REGISTERS.search(part)
        if name is None or spills is None or registers is None:
            raise ValueError(f"the assembler's report is not understood: {part.strip().splitlines()[0]}")
        stack, stores, loads = (int(number) for number in spills.groups())
        usages.append(Usage(name[1], int(registers[1]), stack, stores + loads))
    return tuple(usages)


def cached_unit(unit: str, architecture: str, folder: Path | None = None) -> bytes:
    """As compile_unit, from `folder` (the user's cache) when it was compiled before.

    A file is written beside its place and renamed: processes that compile at once, or die while they do, leave whole files only.
    """
    place = folder or platformdirs.user_cache_path("kcode") / "cuda"
    path = place / f"{unit}-{architecture}-{sources.unit_key(unit, architecture, compiler_version())}.cubin"
    if path.is_file():
        return path.read_bytes()
    code, _ = compile_unit(unit, architecture)
    place.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        partial.write_bytes(code)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return code
