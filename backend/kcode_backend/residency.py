"""Which experts are kept in memory: those that are chosen most often, by counts that fade.

A pass goes through the layers in order, so of two experts that are chosen equally often the one whose layer was passed last is
given up: its turn comes last. So long prompts, which go through all experts of every layer, keep what fits, and only the rest
comes and goes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

HALF_LIFE = 512.0
"""Passes through a layer after which a choice counts half."""
LEEWAY = 0.25
"""Experts whose counts differ by less than this factor (as a power of two) are equally good."""
NOBODY = -1

Counts = npt.NDArray[np.float32]


class Residency:
    """Slots, and the (layer, expert) that each holds. Used by one thread."""

    def __init__(self, slots: int, layers: int, experts: int) -> None:
        self.slots = slots
        self._slot = np.full((layers, experts), NOBODY, dtype=np.int32)
        self._layer = np.full(slots, NOBODY, dtype=np.int32)
        self._expert = np.zeros(slots, dtype=np.int32)
        self._counts: Counts = np.zeros((layers, experts), dtype=np.float32)
        self._counted_at = np.zeros((layers, experts), dtype=np.float32)
        self._passes = np.zeros(layers, dtype=np.float32)
        self._free = list(range(slots - 1, -1, -1))

    def slot(self, layer: int, expert: int) -> int:
        """NOBODY when it is not there."""
        return int(self._slot[layer, expert])

    def held(self) -> int:
        """Slots that are taken."""
        return self.slots - len(self._free)

    def count(self, layer: int, experts: Sequence[int]) -> None:
        """A pass through the layer chose these."""
        self._passes[layer] += 1
        chosen = np.asarray(experts, dtype=np.int64)
        self._counts[layer, chosen] = self._faded(layer)[chosen] + 1
        self._counted_at[layer, chosen] = self._passes[layer]

    def take(self, layer: int, kept: Collection[int]) -> int | None:
        """A slot for an expert of `layer`, emptied; none of those `kept`. None: all are."""
        if self._free:
            return self._free.pop()
        worth = self._worth(layer)
        if kept:
            worth[list(kept)] = np.inf
        slot = int(worth.argmin())
        if not np.isfinite(worth[slot]):
            return None
        self._slot[self._layer[slot], self._expert[slot]] = NOBODY
        self._layer[slot] = NOBODY
        return slot

    def put(self, slot: int, layer: int, expert: int) -> None:
        """The slot, which was taken, holds the expert now."""
        self._layer[slot], self._expert[slot] = layer, expert
        self._slot[layer, expert] = slot

    def give_back(self, slot: int) -> None:
        """A slot that was taken and not filled."""
        self._free.append(slot)

    def counts(self) -> Counts:
        """All counts as they are now: [layers, experts]."""
        return np.stack([self._faded(layer) for layer in range(len(self._passes))])

    def restore(self, counts: Counts) -> None:
        """Begins with the counts of an earlier run."""
        self._counts[:] = counts
        self._counted_at[:] = 0
        self._passes[:] = 0

    def _faded(self, layer: int) -> Counts:
        age = self._passes[layer] - self._counted_at[layer]
        return self._counts[layer] * np.exp2(-age / np.float32(HALF_LIFE))

    def _worth(self, layer: int) -> npt.NDArray[np.float64]:
        """Of what each slot holds, seen from `layer`. A slot that is taken and not filled is nobody's to take."""
        layers, experts = self._layer, self._expert
        age = self._passes[layers] - self._counted_at[layers, experts]
        with np.errstate(divide="ignore"):
            often = np.log2(self._counts[layers, experts], dtype=np.float64) - age / HALF_LIFE
        away = (layers - layer) % len(self._passes)
        # The layer under way is done with its own experts but for those kept: its turn is the furthest away.
        away[away == 0] = len(self._passes)
        worth = np.maximum(often, -1e6) - LEEWAY * away / len(self._passes)
        worth[layers == NOBODY] = np.inf
        return worth


def expected_hits(counts: Counts, slots: int) -> float:
    """The share of choices that find their expert in memory, as far as the choices counted tell; of an even router without any.

    Each choice is left out once and held against what the others would keep (leave-one-out): kept by their own counts, the
    experts of a short run would all seem to be chosen often.
    """
    even = min(1.0, slots / counts.size) if counts.size else 1.0
    total = float(counts.sum())
    if total <= 0 or even == 1.0:
        return even
    ranked = np.sort(counts.ravel())
    chosen = ranked[ranked > 0]
    without = np.maximum(chosen - 1, 0)
    # The expert itself stands above its count without the choice, unless the choice has faded to less than one.
    above = counts.size - np.searchsorted(ranked, without, side="right") - (chosen > without)
    equal = np.searchsorted(ranked, without, side="right") - np.searchsorted(ranked, without, side="left") + 1
    kept = np.clip((slots - above) / equal, 0.0, 1.0)
    return max(even, float((chosen * kept).sum() / total))


def counts_file(folder: Path, fingerprint: str) -> Path:
    """Where the counts of a model are."""
    return folder / f"{fingerprint}.npy"


def read_counts(path: Path, layers: int, experts: int) -> Counts | None:
    """Counts of an earlier run; None when there are none of this shape."""
    try:
        counts = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s: counts of experts cannot be read and begin anew: %s", path, error)
        return None
    if not isinstance(counts, np.ndarray) or counts.shape != (layers, experts) or counts.dtype != np.float32:
        return None
    found: Counts = counts
    return found if bool(np.isfinite(found).all()) and float(found.min()) >= 0 else None


def write_counts(path: Path, counts: Counts) -> None:
    """Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    with scratch.open("wb") as file:
        np.save(file, counts)
    scratch.replace(path)
