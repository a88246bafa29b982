"""Compiles csrc/cpu into one shared library; used by the wheel build and, at first use, by `native`.

Only the standard library is imported: the wheel build loads this file by its path.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

COMPILE_TIMEOUT_S = 600
COMMON_FLAGS = (
    "-std=c++17",
    "-O2",
    "-ftree-vectorize",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-pthread",
    "-Wall",
    "-Wextra",
)
ISA_FLAGS = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512vnni": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx2", "-mfma", "-mf16c"),
}
EMULATED_FLAGS = ("-O1", "-DKC_EMULATE_AVX512", "-mavx2", "-mfma", "-mf16c", "-Wno-psabi")
BASE_UNITS = ("api.cpp", "pool.cpp", "pack.cpp")
ISA_UNIT = "kernels.cpp"


class CompileError(Exception):
    """The compiler is missing or failed; the message is one line."""


@dataclass(frozen=True)
class Unit:
    source: Path
    flags: tuple[str, ...]
    name: str


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that a library for this machine's architecture contains."""
    return tuple(ISA_FLAGS) if platform.machine().lower() in {"x86_64", "amd64"} else ("portable",)


def source_hash(csrc: Path) -> str:
    """Names a library: the sources, the flags and the architecture."""
    digest = hashlib.sha256(repr((COMMON_FLAGS, ISA_FLAGS, platform.machine(), sys.platform)).encode())
    for path in sorted(csrc.iterdir()):
        if path.suffix in {".cpp", ".h"}:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def library_name(csrc: Path) -> str:
    return f"_native-{source_hash(csrc)}.so"


def find_compiler() -> str | None:
    """$CXX, else the first of c++, g++, clang++ on the path."""
    chosen = os.environ.get("CXX", "").strip()
    names = [chosen] if chosen else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def compile_library(csrc: Path, target: Path, compiler: str, emulate_avx512: bool = False) -> None:
    """Writes `target` whole or not at all.

    emulate_avx512: the AVX-512 unit runs on any AVX2 machine through SIMDe's headers, for tests.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kcode-kernels-") as folder:
        objects: list[str] = []
        running: list[tuple[Unit, subprocess.Popen[bytes]]] = []
        for unit in _units(csrc, emulate_avx512):
            output = str(Path(folder, unit.name + ".o"))
            objects.append(output)
            command = [compiler, *COMMON_FLAGS, *unit.flags, "-c", str(unit.source), "-o", output]
            running.append(
                (unit, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
            )
        failures = [failure for unit, process in running if (failure := _failure(unit.name, process))]
        if failures:
            raise CompileError(failures[0])
        library = target.with_name(f".{os.getpid()}-{target.name}")
        command = [compiler, "-shared", "-pthread", *objects, "-o", str(library)]
        link = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        failure = _failure("link", link)
        if failure:
            raise CompileError(failure)
        os.replace(library, target)


def _units(csrc: Path, emulate_avx512: bool) -> list[Unit]:
    define = "-DKC_X86=1" if len(instruction_sets()) > 1 else "-DKC_X86=0"
    extra = ("-DKC_EMULATE_AVX512",) if emulate_avx512 else ()
    units = [Unit(csrc / name, (define, "-ffp-contract=off", *extra), name) for name in BASE_UNITS]
    for isa in instruction_sets():
        flags = EMULATED_FLAGS if emulate_avx512 and isa == "avx512vnni" else ISA_FLAGS[isa]
        units.append(Unit(csrc / ISA_UNIT, (define, f"-DKC_ISA_{isa.upper()}", f"-DKC_ISA={isa}", *flags), f"{isa}-{ISA_UNIT}"))
    return units


def _failure(name: str, process: subprocess.Popen[bytes]) -> str | None:
    """None when the compiler succeeded, else one line that names the unit and the first error."""
    try:
        _, errors = process.communicate(timeout=COMPILE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"compiling {name} took longer than {COMPILE_TIMEOUT_S} s"
    if process.returncode == 0:
        return None
    lines = errors.decode(errors="replace").splitlines()
    return f"compiling {name} failed: " + next((line for line in lines if "error" in line), lines[-1] if lines else "no message")
