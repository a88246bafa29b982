"""The Pythons of this machine: on PATH, of pyenv and of uv."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kcode.errors import StartError

ASK = "import sys, venv, ensurepip; print('%d.%d.%d' % sys.version_info[:3])"
ASK_TIMEOUT_S = 30.0
MINORS = range(5, 20)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """`path` is the program itself, behind links and version managers; `version` as in 3.9.18."""

    path: Path
    version: str

    @property
    def minor(self) -> int:
        return int(self.version.split(".")[1])


@cache
def interpreters() -> tuple[Interpreter, ...]:
    """Every one that starts and can make an environment, one for each minor version, the oldest first."""
    found: dict[int, Interpreter] = {}
    for path in _candidates():
        match = re.search(r"3\.(\d+)[^/]*(?:/bin/python[\d.]*)?$", str(path))
        if match is not None and int(match[1]) in found:
            continue
        version = _ask(path)
        if version:
            found.setdefault(int(version.split(".")[1]), Interpreter(path.resolve(), version))
    return tuple(found[minor] for minor in sorted(found))


def _candidates() -> Iterator[Path]:
    yield Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"
    home = Path.home()
    for root, pattern in (
        (Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions", "3.*/bin/python"),
        (Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python")), "cpython-3.*/bin/python3"),
    ):
        yield from sorted(root.glob(pattern), reverse=True)
    for minor in MINORS:
        program = shutil.which(f"python3.{minor}")
        if program is not None:
            yield Path(program)


def _ask(path: Path) -> str:
    """Its version, or "" when it does not start or lacks what an environment needs. A virtual environment is not asked."""
    try:
        done = subprocess.run(
            [path, "-I", "-c", ASK], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, cwd="/", check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def nearest(version: str) -> tuple[Interpreter, str]:
    """The one of this minor version ("3.9") or the nearest to it, and a warning, which is "" for the right one."""
    wanted = int(version.split(".")[1])
    known = interpreters()
    if not known:
        raise StartError("no Python with venv and ensurepip was found on PATH, of pyenv or of uv; install one")
    chosen = min(known, key=lambda item: (abs(item.minor - wanted), -item.minor))
    if chosen.minor == wanted:
        return chosen, ""
    return chosen, f"Python {version} is not on this machine; {chosen.version} was taken, results may differ"
