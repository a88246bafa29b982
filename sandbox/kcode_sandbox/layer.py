"""What stands in a copied tree's sandbox in place of the workspace, and how bubblewrap mounts it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layer:
    """`place` as it is seen inside: its own content below, what is written above in `upper`.

    Without an `upper` the folder `source` stands there, read-only unless `is_writable`.
    """

    place: Path
    upper: Path | None = None
    work: Path | None = None
    source: Path | None = None
    is_writable: bool = False


@dataclass(frozen=True, slots=True)
class CopiedTree:
    """`layers` in the order they are mounted; `shared` are further folders that they cover, `sockets` are masked."""

    layers: tuple[Layer, ...]
    shared: tuple[Path, ...] = ()
    sockets: tuple[Path, ...] = ()

    def masks(self) -> list[Path]:
        """The sockets whose way is still as it was: a mount point below a link would be made where the link leads."""
        return [path for path in self.sockets if all(_leads_on(layer, path) for layer in self.layers)]


def layer_arguments(layers: Sequence[Layer]) -> list[str]:
    arguments: list[str] = []
    for layer in layers:
        place = str(layer.place)
        if layer.upper is not None:
            arguments += ["--overlay-src", place, "--overlay", str(layer.upper), str(layer.work), place]
        else:
            arguments += ["--bind" if layer.is_writable else "--ro-bind", str(layer.source), place]
    return arguments


def _leads_on(layer: Layer, path: Path) -> bool:
    if layer.upper is None or not path.is_relative_to(layer.place):
        return True
    place = layer.upper
    for part in path.relative_to(layer.place).parts[:-1]:
        place /= part
        try:
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                return False
        except FileNotFoundError:
            return True
    return not os.path.lexists(place / path.name)
