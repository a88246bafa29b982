"""Experts that do not all fit into memory: some are kept, packed for the kernels, the others are read when they are chosen."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import resource
import time
from bisect import insort
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kcode_backend.errors import ModelFileError
from kcode_backend.kernels.packed import Bytes
from kcode_backend.kernels.placed import ExpertLayout, PlacedExperts
from kcode_backend.residency import NOBODY, Residency, counts_file, read_counts, write_counts
from kcode_backend.weights.expert_files import ExpertFiles, ExpertPlace, RawExpert

log = logging.getLogger(__name__)

READ_AHEAD = 4
"""Experts that are being read at a time."""
MOST_FRESH = 4
"""Experts of a wave that were not in memory. They cannot give way to each other, so others have to."""
LEAST_SLOTS = 2
SAVE_S = 60.0
"""Between two times that the counts are written."""


@dataclass(frozen=True, slots=True)
class ExpertMemory:
    """What the experts of a model may take. Models whose experts all fit have them all in memory."""

    ram_bytes: int | None = None
    """None: what is left beside the model's other weights and the cache of keys and values."""
    lock_bytes: int = 0
    """So much of it is never swapped out."""
    counts_folder: Path | None = None
    """Where it is remembered which experts are chosen often."""


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """The experts of one layer in the files."""

    layer: int
    layout: ExpertLayout
    places: tuple[ExpertPlace, ...]


@dataclass(slots=True)
class Traffic:
    """Since the start."""

    hits: int = 0
    misses: int = 0
    read_bytes: int = 0
    waited_s: float = 0.0
    """For the disk, while nothing was computed."""
    packed_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        """1.0 before anything was chosen."""
        chosen = self.hits + self.misses
        return self.hits / chosen if chosen else 1.0


class ExpertStore:
    """Slots of equal size in one block of memory. Used by the thread that computes."""

    def __init__(self, memory: ExpertMemory, ram_bytes: int) -> None:
        """`ram_bytes`: what is meant by the memory's."""
        self._memory = memory
        self._ram_bytes = ram_bytes
        self.traffic = Traffic()
        self._layers: list[StoredLayer] = []
        self._placed: list[PlacedExperts] = []
        self._ready = False
        self._counts_file: Path | None = None

    def add(self, layer: StoredLayer) -> int:
        """Before `open`; the result names the layer in `waves`."""
        self._layers.append(layer)
        self._placed.append(PlacedExperts(layer.layout, len(layer.places)))
        return len(self._layers) - 1

    def open(self, fingerprint: str) -> None:
        """Takes the memory. ModelFileError, with the numbers, when it is too little or cannot be locked."""
        self._slot_bytes = max(layer.layout.nbytes for layer in self._layers)
        total = sum(len(layer.places) for layer in self._layers)
        slots = min(total, self._ram_bytes // self._slot_bytes)
        if slots < LEAST_SLOTS:
            raise ModelFileError(
                f"{self._ram_bytes / 1e9:.2f} GB for experts hold {slots} of {total} experts of "
                f"{self._slot_bytes / 1e6:.1f} MB; at least {LEAST_SLOTS} have to fit: "
                "give more (expert_ram_gb in the settings, --expert-ram of kcode serve)"
            )
        arena = mmap.mmap(-1, slots * self._slot_bytes)
        with contextlib.suppress(AttributeError, OSError):
            arena.madvise(mmap.MADV_HUGEPAGE)
        self._arena = np.frombuffer(arena, np.uint8)
        if self._memory.lock_bytes:
            lock(self._arena[: self._memory.lock_bytes])
        most = max(len(layer.places) for layer in self._layers)
        self._residency = Residency(slots, len(self._layers), most)
        self._files = ExpertFiles(READ_AHEAD, max(_bytes(layer.places[0]) for layer in self._layers))
        if self._memory.counts_folder is not None:
            self._counts_file = counts_file(self._memory.counts_folder, fingerprint)
            counts = read_counts(self._counts_file, len(self._layers), most)
            if counts is not None:
                self._residency.restore(counts)
        self._saved_at = time.monotonic()
        self._ready = True
        log.info(
            "%d of %d experts fit into %.1f GB, the others are read when chosen", slots, total, slots * self._slot_bytes / 1e9
        )

    @property
    def slots(self) -> int:
        return self._residency.slots

    def placed(self, layer: int) -> PlacedExperts:
        return self._placed[layer]

    def waves(self, layer: int, experts: Sequence[int]) -> Generator[dict[int, Bytes]]:
        """The blocks of `experts` in this order, some at a time; each wave's are valid until the next is asked for.

        While a wave is used the next experts are read. ModelFileError when that fails.
        """
        if time.monotonic() - self._saved_at > SAVE_S:
            self.save()
        self._residency.count(layer, experts)
        passing = _Pass(self, layer, experts)
        try:
            yield from passing.waves()
        finally:
            passing.end()

    def save(self) -> None:
        """Remembers which experts are chosen often; a disk that is full is only mentioned."""
        self._saved_at = time.monotonic()
        if self._counts_file is None:
            return
        try:
            write_counts(self._counts_file, self._residency.counts())
        except OSError as error:
            log.warning("%s: the counts of experts were not kept: %s", self._counts_file, error.strerror)

    def close(self) -> None:
        """No more `waves` after it."""
        if self._ready:
            self._ready = False
            self.save()
            self._files.close()

    def block(self, layer: int, slot: int) -> Bytes:
        start = slot * self._slot_bytes
        return self._arena[start : start + self._layers[layer].layout.nbytes]

    def place(self, layer: int, expert: int) -> ExpertPlace:
        return self._layers[layer].places[expert]

    @property
    def residency(self) -> Residency:
        return self._residency

    @property
    def files(self) -> ExpertFiles:
        return self._files


class _Pass:
    """One layer's experts under way."""

    def __init__(self, store: ExpertStore, layer: int, experts: Sequence[int]) -> None:
        self._store = store
        self._layer = layer
        self._experts = experts
        self._next = {expert: place for place, expert in enumerate(experts)}
        self._kept: dict[int, int] = {}
        """Slots of experts in memory that are yet to come, to their place in the order."""
        self._missing: list[int] = []
        """Places in the order of experts that nobody reads yet."""
        self._reads: dict[int, Future[RawExpert]] = {}
        for place, expert in enumerate(experts):
            slot = store.residency.slot(layer, expert)
            if slot == NOBODY:
                self._missing.append(place)
            else:
                self._kept[slot] = place
        store.traffic.hits += len(self._kept)
        store.traffic.misses += len(self._missing)

    def waves(self) -> Generator[dict[int, Bytes]]:
        wave: dict[int, Bytes] = {}
        used: set[int] = set()
        fresh = 0
        for place, expert in enumerate(self._experts):
            self._read_ahead()
            slot = self._store.residency.slot(self._layer, expert)
            if slot == NOBODY:
                if wave and (fresh == MOST_FRESH or not self._reads[place].done()):
                    yield wave
                    wave, used, fresh = {}, set(), 0
                slot = self._make_room(used)
                if slot is None:
                    yield wave
                    wave, used, fresh = {}, set(), 0
                    slot = self._make_room(used)
                    assert slot is not None, "there are at least two slots"
                self._fill(place, expert, slot)
                fresh += 1
            self._kept.pop(slot, None)
            wave[expert] = self._store.block(self._layer, slot)
            used.add(slot)
        if wave:
            yield wave

    def end(self) -> None:
        """Whatever is still being read is waited for, since it fills memory that will be used again."""
        for read in self._reads.values():
            if read.exception() is None:
                read.result().release()
        self._reads.clear()

    def _read_ahead(self) -> None:
        store = self._store
        while self._missing and len(self._reads) < store.files.ahead:
            place = self._missing.pop(0)
            self._reads[place] = store.files.read(store.place(self._layer, self._experts[place]))

    def _make_room(self, used: set[int]) -> int | None:
        """A slot that holds nothing that this pass still needs; else the one that it needs last. None: `used` has them all."""
        residency = self._store.residency
        slot = residency.take(self._layer, used | self._kept.keys())
        if slot is not None or not self._kept:
            return slot
        last = max(self._kept, key=lambda slot: self._kept[slot])
        insort(self._missing, self._kept.pop(last))
        self._store.traffic.misses += 1
        self._store.traffic.hits -= 1
        return residency.take(self._layer, used | self._kept.keys())

    def _fill(self, place: int, expert: int, slot: int) -> None:
        store = self._store
        started = time.monotonic()
        try:
            raw = self._reads.pop(place).result()
        except BaseException:
            store.residency.give_back(slot)
            raise
        waited = time.monotonic()
        try:
            store.placed(self._layer).fill(store.block(self._layer, slot), raw.sources())
        except BaseException:
            store.residency.give_back(slot)
            raise
        finally:
            raw.release()
        store.residency.put(slot, self._layer, expert)
        self._read_ahead()
        store.traffic.read_bytes += _bytes(store.place(self._layer, expert))
        store.traffic.waited_s += waited - started
        store.traffic.packed_s += time.monotonic() - waited


def _bytes(place: ExpertPlace) -> int:
    return sum(matrix.data.size + (matrix.scales.size if matrix.scales is not None else 0) for matrix in place)


def lock(memory: Bytes) -> None:
    """Keeps the memory from being swapped out. ModelFileError, with the limit, when the system refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(memory.nbytes)):
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        allowed = "no limit" if limit == resource.RLIM_INFINITY else f"a limit of {limit / 1e9:.3f} GB (ulimit -l)"
        raise ModelFileError(
            f"{memory.nbytes / 1e9:.2f} GB of memory cannot be locked: {os.strerror(ctypes.get_errno())}, with {allowed}; "
            "raise the limit or give less with --expert-lock"
        )
