"""What an attack is: a script that a hostile command runs in the workspace, and the effect that would show on the host."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict

from kcode_sandbox.policy import Choice

Effect = Literal["leak", "write", "reach", "kill", "later", "outlive", "harm"]
"""leak: the secret is in the output. write: something changed outside the workspace. reach: a listener of the host heard of it.
kill: the victim is gone. later: what the developer does afterwards ran the payload. outlive: a process is alive after the end.
harm: the script itself saw that it got what it must not get, and says PWNED."""
TABLES = ("files.toml", "later.toml", "kernel.toml", "secrets.toml")


@dataclass(frozen=True, slots=True)
class Attack:
    """`script` is bash in the workspace, with the scene's places in its environment (see scene.py).

    `control` False: it cannot be shown to work without walls, since it would harm the machine or needs what this user lacks.
    `residue` names the backends that do not hold it.
    """

    group: str
    name: str
    effect: Effect
    script: str
    control: bool
    residue: tuple[Choice, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    group: str
    name: str
    effect: Effect
    script: str
    language: Literal["bash", "python"] = "bash"
    control: bool = True
    residue: tuple[Choice, ...] = ()


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")

    attack: list[_Row]


def read_attacks() -> tuple[Attack, ...]:
    """All attacks of the tables beside this file."""
    found: list[Attack] = []
    for name in TABLES:
        table = _Table.model_validate(tomllib.loads((files("kcode_bench.attacks") / name).read_text(encoding="utf-8")))
        found += [Attack(row.group, row.name, row.effect, _script(row), row.control, row.residue) for row in table.attack]
    return tuple(found)


def _script(row: _Row) -> str:
    return row.script if row.language == "bash" else f"python3 - <<'PYTHON'\n{row.script}PYTHON\n"
