"""What a person or a model may name as the Python tests to run, in the form the runners take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

TEST_FILE = re.compile(r"^(?:test_.*|.*_test|tests?)\.py$")
LIBRARY_FOLDERS = {"node_modules", "site-packages", ".venv", "venv", "env", ".tox", ".nox"}


@dataclass(frozen=True, slots=True)
class PythonTarget:
    """`ids` are files, folders, or FILE::Class::test; `pattern` selects by name. Both empty: all tests."""

    ids: tuple[str, ...]
    pattern: str


def is_python_test(path: str) -> bool:
    *folders, name = path.split("/")
    return TEST_FILE.match(name) is not None and not LIBRARY_FOLDERS & set(folders)


def python_target(target: str, pattern: str, paths: Sequence[str]) -> PythonTarget | str:
    """Understands paths, pytest ids, dotted unittest names, and bare test names; a text that says why it cannot."""
    if not target:
        return PythonTarget((), pattern)
    path, separator, inside = target.partition("::")
    path = path.removeprefix("./").rstrip("/") or "."
    if path == "." or path in paths or any(entry.startswith(path + "/") for entry in paths):
        return PythonTarget((path + separator + inside,), pattern)
    if separator or path.endswith(".py") or "/" in path:
        same = [entry for entry in paths if entry.rpartition("/")[2] == path.rpartition("/")[2]]
        if len(same) == 1:
            return PythonTarget((same[0] + separator + inside,), pattern)
        if path.startswith("/") and path.endswith(".py"):
            return PythonTarget((path + separator + inside,), pattern)  # outside of the workspace, where nothing is listed
        near = ", ".join(same[:5] or [entry for entry in paths if is_python_test(entry)][:5])
        return f"there is no {path}; test files are: {near or 'none'}"
    return dotted_target(path, pattern, paths) or PythonTarget((), pattern or path)


def dotted_target(name: str, pattern: str, paths: Sequence[str]) -> PythonTarget | None:
    """`tests.test_a.Class.test_x` as `tests/test_a.py::Class::test_x`, if there is such a file."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = "/".join(parts[:count]) + ".py"
        if path in paths:
            return PythonTarget(("::".join([path, *parts[count:]]),), pattern)
    return None
