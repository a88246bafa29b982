"""Changes between two trees, carried over to a third one that has changed by itself."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kcode.errors import CheckpointFailed
from kcode.tree_objects import write_object

Files = dict[str, tuple[str, str]]
"""Mode and blob id by path."""
Merge = Callable[[str, str, str], str | None]
"""The blob of the merge of (mine, base, theirs); None when it has conflicts."""


@dataclass(frozen=True, slots=True)
class TakenBack:
    """Paths that were `changed`, those of them that were `merged`, and those left alone because of `conflicts`."""

    changed: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


Git = Callable[[Sequence[str]], bytes]
"""Runs git over the store of snapshots; raises CheckpointFailed when it fails."""


def files_of(git: Git, tree: str) -> Files:
    """The files of a snapshot."""
    listed = (os.fsdecode(line).split("\t", 1) for line in git(["ls-tree", "-r", "-z", tree]).split(b"\0") if line)
    return {path: (facts.split(" ")[0], facts.split(" ")[2]) for facts, path in listed}


def merge_blobs(git: Git, store: Path, mine: str, base: str, theirs: str) -> str | None:
    """A Merge over the snapshots in `store`."""
    with tempfile.TemporaryDirectory(dir=store) as folder:
        sides = [Path(folder) / side for side in ("mine", "base", "theirs")]
        for side, blob in zip(sides, (mine, base, theirs), strict=True):
            side.write_bytes(git(["cat-file", "blob", blob]))
        try:
            merged = git(["merge-file", "-p", "-q", *map(str, sides)])
        except CheckpointFailed:
            return None
        return write_object(store, "blob", merged)


def carry_over(
    now: Mapping[str, tuple[str, str]], changes: Sequence[tuple[Files, Files]], merge: Merge
) -> tuple[Files, TakenBack]:
    """`now` after each of the changes (from, to), in order."""
    files = dict(now)
    merged: set[str] = set()
    conflicts: set[str] = set()
    for source, target in changes:
        for path in sorted({path for path in {*source, *target} if source.get(path) != target.get(path)}):
            mine, base, theirs = files.get(path), source.get(path), target.get(path)
            if mine == theirs:
                continue
            if mine == base:
                _put(files, path, theirs)
            elif mine and base and theirs and (blob := merge(mine[1], base[1], theirs[1])) is not None:
                files[path] = (theirs[0] if mine[0] == base[0] else mine[0], blob)
                merged.add(path)
            else:
                conflicts.add(path)
    for path in _blocked(files):
        # A file of the user's stands where a folder was, or the other way round.
        _put(files, path, now.get(path))
        conflicts.add(path)
    changed = {path for path in {*now, *files} if now.get(path) != files.get(path)}
    return files, TakenBack(*(tuple(sorted(paths)) for paths in (changed, merged & changed, conflicts)))


def _put(files: Files, path: str, file: tuple[str, str] | None) -> None:
    if file is None:
        files.pop(path, None)
    else:
        files[path] = file


def _blocked(files: Files) -> list[str]:
    """Paths below something that is a file itself."""
    return [path for path in files if any(path[:end] in files for end, character in enumerate(path) if character == "/")]
