"""kcode: a terminal coding agent that owns its whole stack. `from kcode import Session` is its Python API (docs/api.md).

What the API needs is imported when it is first named, so that `kcode --version` stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Result", "Session", "__version__", "run"]

if TYPE_CHECKING:
    from kcode.api import Result, Session, run


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'kcode' has no attribute {name!r}")
    from kcode import api

    return getattr(api, name)
