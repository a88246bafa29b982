"""Scheduler, pool, index and disk under random traces: the cache is simulated, so a wrong block shows as wrong content."""

from __future__ import annotations

import hashlib
import queue
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kcode_backend.engine.request import Generation
from kcode_backend.engine.scheduler import Scheduler, Step
from kcode_backend.engine.sequence import Sequence
from kcode_backend.kv.disk import DiskTier
from kcode_backend.kv.pool import BlockPool
from kcode_backend.kv.prefix import PrefixIndex
from kcode_backend.kv.table import BlockTable
from kcode_backend.kv.tiers import Arrival, Tiers

SIZE = 4
MARK = 8
"""Bytes of one simulated token."""


class Cells:
    """What the cache would hold: per token a hash of the model and of the whole context up to it."""

    def __init__(self, model: str, blocks: int) -> None:
        self._model = model
        self._blocks = [bytearray(SIZE * MARK) for _ in range(blocks)]

    def read_block(self, block: int) -> bytes:
        return bytes(self._blocks[block])

    def write_block(self, block: int, data: bytes) -> None:
        self._blocks[block][:] = data

    def compute(self, block: int, offset: int, context: list[int]) -> None:
        self._blocks[block][offset * MARK : (offset + 1) * MARK] = self._mark(context)

    def holds(self, block: int, offset: int, context: list[int]) -> bool:
        return bytes(self._blocks[block][offset * MARK : (offset + 1) * MARK]) == self._mark(context)

    def _mark(self, context: list[int]) -> bytes:
        return hashlib.blake2b(repr((self._model, context)).encode(), digest_size=MARK).digest()


@dataclass
class Told:
    """What a request found."""

    ids: list[int]
    cached: int
    from_disk: int


class World:
    """An engine without a network: its scheduler, pool and tiers, driven by hand."""

    def __init__(self, folder: Path, model: str, blocks: int) -> None:
        self.model = model
        self.cells = Cells(model, blocks)
        self.pool = BlockPool(blocks, PrefixIndex(model))
        self.arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        space = hashlib.blake2b(model.encode(), digest_size=16).digest()
        self.tiers = Tiers(self.pool, self.cells, DiskTier(folder, space, SIZE, SIZE * MARK, 1 << 30), self.arrivals.put)
        self.scheduler = Scheduler(self.pool, self.tiers)
        self.told: list[Told] = []
        self._tickets = 0

    def submit(self, ids: list[int], priority: int) -> None:
        if len(ids) < self.pool.blocks * SIZE:
            generation = Generation(prompt=tuple(ids), sink=lambda _: None, priority=priority)
            self.scheduler.add(Sequence(generation, self._tickets, BlockTable(self.pool, SIZE)))
            self._tickets += 1

    def cancel(self, number: int) -> None:
        self.scheduler.remove(self.scheduler.sequences[number % len(self.scheduler.sequences)])

    def step(self, budget: int) -> None:
        """One pass; each sequence that is through its prompt ends with it."""
        self._take_arrivals()
        plan = self.scheduler.plan(list(self.scheduler.sequences), budget)
        while not plan.spans and self.scheduler.sequences:
            assert any(sequence.fetch for sequence in self.scheduler.sequences), "nothing to compute and nothing on its way"
            self._arrive(self.arrivals.get(timeout=20))
            self.check()
            plan = self.scheduler.plan(list(self.scheduler.sequences), budget)
        self._compute(plan)
        self.scheduler.commit(plan)
        self.check()
        for span in plan.spans:
            if span.sequence.pending == 0:
                prompt = list(span.sequence.generation.prompt)
                self.told.append(Told(prompt, span.sequence.cached, span.sequence.from_disk))
                self.scheduler.remove(span.sequence)
        self.tiers.store(3)
        self.check()

    def finish(self) -> list[Told]:
        while self.scheduler.sequences:
            self.step(16)
        self.tiers.close(20)
        assert self.pool.used == 0
        return self.told

    def check(self) -> None:
        pool = self.pool
        assert pool.free + pool.cached + pool.used == pool.blocks
        owners = Counter(block for sequence in self.scheduler.sequences for block in sequence.table.blocks)
        assert [pool.references(block) for block in range(pool.blocks)] == [owners[block] for block in range(pool.blocks)]
        for sequence in self.scheduler.sequences:
            assert len(set(sequence.table.blocks)) == len(sequence.table.blocks)
        for block, count in owners.items():
            assert count == 1 or block in pool.index, "a block that is not indexed has two owners"

    def _compute(self, plan: Step) -> None:
        for copy in plan.copies:
            self.cells.write_block(copy.target, self.cells.read_block(copy.source))
        for span in plan.spans:
            sequence = span.sequence
            for at in range(sequence.computed + span.count):
                block, offset = sequence.table.blocks[at // SIZE], at % SIZE
                if at >= sequence.computed:
                    self.cells.compute(block, offset, sequence.ids[: at + 1])
                assert self.cells.holds(block, offset, sequence.ids[: at + 1]), "a block with another context's content"

    def _take_arrivals(self) -> None:
        while not self.arrivals.empty():
            self._arrive(self.arrivals.get())

    def _arrive(self, arrival: Arrival) -> None:
        sequence = next((each for each in self.scheduler.sequences if each.fetch is arrival.fetch), None)
        if sequence is None:
            self.tiers.dismissed(arrival)
            return
        sequence.computed = self.tiers.arrived(arrival, sequence.table, sequence.ids, sequence.computed, sequence.reusable)


actions = st.lists(
    st.tuples(
        st.sampled_from(["submit", "branch", "step", "step", "cancel", "restart", "other model"]),
        st.integers(0, 9),
        st.lists(st.integers(0, 1), min_size=1, max_size=14),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(blocks=st.integers(5, 24), trace=actions)
def test_no_trace_mixes_or_loses_blocks(blocks: int, trace: list[tuple[str, int, list[int]]]) -> None:
    history: list[list[int]] = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), "one", blocks)
        for action, number, ids in trace:
            match action:
                case "submit" | "branch":
                    wanted = ids if action == "submit" or not history else history[number % len(history)][: 3 * number] + ids
                    history.append(wanted)
                    world.submit(wanted, number % 2)
                case "step":
                    world.step(number + 1)
                case "cancel" if world.scheduler.sequences:
                    world.cancel(number)
                case "restart":
                    world.finish()
                    world = World(Path(folder), world.model, blocks)
                case "other model":
                    world.finish()
                    world = World(Path(folder), "two" if world.model == "one" else "one", blocks)
                case _:
                    pass
            world.check()
        world.finish()


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    new=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    forked=st.integers(0, 40),
)
def test_after_a_restart_only_new_tokens_are_computed(ids: list[int], new: list[int], forked: int) -> None:
    """The same prompt, the next turn, and a branch from the middle, each in a process of its own."""
    branch = [*ids[:forked], 7, *new]
    with tempfile.TemporaryDirectory() as folder:
        first = World(Path(folder), "one", 32)
        first.submit(ids, 0)
        first.finish()
        for wanted, known in ((ids, len(ids) - 1), (ids + new, len(ids)), (branch, len(ids[:forked]))):
            world = World(Path(folder), "one", 32)
            world.submit(wanted, 0)
            told = world.finish()[0]
            assert told.cached >= min(known, len(wanted) - 1)
            assert told.from_disk == told.cached
        other = World(Path(folder), "two", 32)
        other.submit(ids, 0)
        assert other.finish() == [Told(ids, 0, 0)]
