"""What a test of a message's words imports: modules of the project, and the comparison of values with their text.

This file is copied into the sandbox and run there by the project's own interpreter: standard library only, Python 3.8 and newer,
no import of kcode.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import types
from collections.abc import Callable
from typing import Any

ROOT = os.getcwd()
MOST_ITEMS = 10000
AS_SAID = "the message says it should be"


def module(folder: str, name: str) -> types.ModuleType:
    """A module of the project; a package that cannot be started, not being installed say, is passed by."""
    root = os.path.join(ROOT, folder) if folder else ROOT
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        return importlib.import_module(name)
    except Exception:
        top, _, below = name.partition(".")
        if not below:
            raise
        for known in [known for known in sys.modules if known == top or known.startswith(top + ".")]:
            del sys.modules[known]
        package = types.ModuleType(top)
        package.__path__ = [os.path.join(root, top)]
        sys.modules[top] = package
        return importlib.import_module(name)


def listed(value: Any) -> Any:
    """What an iterator gives, as a list."""
    return list(itertools.islice(value, MOST_ITEMS)) if hasattr(value, "__next__") else value


def is_told(value: Any, text: str, literal: str) -> bool:
    """Whether the value is what was told; a string may be told without its quotes, any sequence as a list or tuple."""
    if not literal:
        return text in (str(value), repr(value))
    told: Any = eval(literal)
    if isinstance(told, str):
        return str(value) == told
    is_collection = hasattr(value, "__iter__") and not isinstance(value, (str, bytes, dict, set, frozenset))
    if isinstance(told, (list, tuple)) and is_collection:
        return list(value) == list(told)
    return isinstance(value, bool) == isinstance(told, bool) and (value is told or bool(value == told))


def check(call: str, give: Callable[[], Any], got: tuple[str, str], wanted: tuple[str, str]) -> None:
    """Raise AssertionError unless `give` gives what is `wanted`; AS_SAID is in its message if it does what the message says.

    Of both the text is given, and a Python literal, "" when the text is all there is.
    """
    try:
        value = listed(give())
    except Exception as error:
        found = f"{call} raises {type(error).__name__}: {error}"
        raise AssertionError(f"{found}; {AS_SAID} {wanted[0]}" if type(error).__name__ == got[0] else found) from error
    if is_told(value, *wanted):
        return
    if is_told(value, *got):
        raise AssertionError(f"{call} is {value!r}; {AS_SAID} {wanted[0]}")
    raise AssertionError(f"{call} is {value!r}, neither what the message says it is nor what it should be")
