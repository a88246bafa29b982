"""The CUDA sources: where they lie, what they contain, and each as one text without includes, as NVRTC takes it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_INCLUDE = re.compile(r'^#include "(?P<name>[\w./]+)"$', re.MULTILINE)
# Of emulated.h, which only tests include.
_EMULATION = "emulated.h"

_FORMATS = ("INT4", "Q4_0", "Q4_K")
UNITS: dict[str, tuple[str, ...]] = {
    "activation": ("silu_mul",),
    "combine": ("attention_combine",),
    "gemv": tuple(f"gemv_{name}_{tokens}" for name in _FORMATS for tokens in (1, 2, 3, 4)),
    "gqa": ("gqa_64", "gqa_128"),
    "mla": ("mla",),
    "moe": tuple(f"moe_{part}_{name}" for part in ("gate_up", "down") for name in _FORMATS),
    "norm": ("rms_norm",),
    "rope": ("rope",),
    "route": ("route",),
}
"""The kernels of each unit, NAME.cu."""
UNIT_OF = {kernel: unit for unit, kernels in UNITS.items() for kernel in kernels}


def csrc_folder() -> Path:
    """Beside this file in an installed wheel, backend/csrc/cuda in a checkout."""
    bundled = PACKAGE / "csrc"
    return bundled if bundled.is_dir() else PACKAGE.parent.parent / "csrc" / "cuda"


def unit_text(unit: str) -> str:
    """The unit with each header it includes in its place, once."""
    folder = csrc_folder()
    seen: set[str] = set()

    def included(match: re.Match[str]) -> str:
        name = match["name"]
        if name in seen or name == _EMULATION:
            return ""
        seen.add(name)
        return _INCLUDE.sub(included, (folder / name).read_text().replace("#pragma once\n", ""))

    return _INCLUDE.sub(included, (folder / f"{unit}.cu").read_text())


def unit_key(unit: str, *facts: str) -> str:
    """Names a compiled unit: its text and everything else that decides what comes out of it."""
    digest = hashlib.sha256(repr(facts).encode())
    digest.update(unit_text(unit).encode())
    return digest.hexdigest()[:24]
