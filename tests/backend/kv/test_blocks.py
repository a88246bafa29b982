"""Block accounting under random traces: contents are simulated, so a wrongly shared block shows as wrong tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kcode_backend.kv.pool import BlockPool
from kcode_backend.kv.prefix import PrefixIndex, chain
from kcode_backend.kv.table import BlockCopy, BlockTable

SIZE = 4


@dataclass
class Memory:
    """What the tensors would hold: per block and offset, the whole context up to that token."""

    cells: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)

    def copy(self, copy: BlockCopy) -> None:
        for offset in range(SIZE):
            if (copy.source, offset) in self.cells:
                self.cells[copy.target, offset] = self.cells[copy.source, offset]


@dataclass
class Run:
    ids: list[int]
    table: BlockTable
    computed: int


class World:
    def __init__(self, blocks: int) -> None:
        self.pool = BlockPool(blocks, PrefixIndex("model"))
        self.memory = Memory()
        self.runs: list[Run] = []

    def start(self, ids: list[int]) -> Run:
        table = BlockTable(self.pool, SIZE)
        computed, copy = table.attach(ids, 0, len(ids) - 1)
        if copy:
            self.memory.copy(copy)
        run = Run(list(ids), table, computed)
        self.runs.append(run)
        return run

    def compute(self, run: Run, count: int) -> bool:
        """False when the pool is too small for `count` more tokens."""
        run.computed = run.table.extend(run.ids, run.computed, len(run.ids) - 1)
        end = min(len(run.ids), run.computed + count)
        if not run.table.grow(end):
            return False
        for position in range(run.computed, end):
            self.memory.cells[run.table.blocks[position // SIZE], position % SIZE] = tuple(run.ids[: position + 1])
        run.computed = end
        run.table.publish(run.ids, run.computed)
        return True

    def stop(self, run: Run) -> None:
        run.table.close(run.ids, run.computed)
        self.runs.remove(run)

    def check(self) -> None:
        pool = self.pool
        assert pool.free + pool.cached + pool.used == pool.blocks
        owners: dict[int, int] = {}
        for run in self.runs:
            assert len(set(run.table.blocks)) == len(run.table.blocks)
            for block in run.table.blocks:
                owners[block] = owners.get(block, 0) + 1
            for position in range(run.computed):
                held = self.memory.cells[run.table.blocks[position // SIZE], position % SIZE]
                assert held == tuple(run.ids[: position + 1]), "a block holds another sequence's tokens"
        assert [pool.references(block) for block in range(pool.blocks)] == [owners.get(block, 0) for block in range(pool.blocks)]
        for block, count in owners.items():
            assert count == 1 or block in pool.index, "a block that is not indexed has two owners"


actions = st.lists(
    st.tuples(
        st.sampled_from(["start", "branch", "compute", "append", "stop"]),
        st.integers(0, 9),
        st.lists(st.integers(0, 1), min_size=1, max_size=14),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(blocks=st.integers(4, 24), trace=actions)
def test_no_trace_mixes_or_loses_blocks(blocks: int, trace: list[tuple[str, int, list[int]]]) -> None:
    world = World(blocks)
    history: list[list[int]] = []
    for action, number, ids in trace:
        run = world.runs[number % len(world.runs)] if world.runs else None
        if action == "start" and len(world.runs) < 6:
            world.start(ids)
        elif action == "branch" and history:
            world.start(history[number % len(history)] + ids)
        elif run and action == "compute":
            world.compute(run, number + 1)
        elif run and action == "append" and run.computed == len(run.ids):
            run.ids.extend(ids)
        elif run and action == "stop":
            history.append(run.ids)
            world.stop(run)
        world.check()
    for run in list(world.runs):
        world.stop(run)
    world.check()
    assert world.pool.used == 0
    world.pool.clear()
    assert world.pool.free == blocks
    assert len(world.pool.index) == 0


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=40), new=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_next_turn_computes_only_new_tokens(ids: list[int], new: list[int]) -> None:
    world = World(64)
    run = world.start(ids)
    world.compute(run, 1000)
    world.stop(run)
    again = world.start(ids + new)
    assert again.computed == len(ids) + len(new) - 1 if len(new) == 1 else again.computed >= len(ids)
    world.check()


def test_repeated_prompt_computes_one_token() -> None:
    world = World(16)
    prompt = list(range(11))
    run = world.start(prompt)
    world.compute(run, 100)
    assert world.start(prompt).computed == 8, "a running sequence shares only its full blocks"
    world.stop(run)
    assert world.start(prompt).computed == 10


def test_block_computed_meanwhile_is_taken_over() -> None:
    world = World(16)
    prompt = list(range(13))
    first, second = world.start(prompt), world.start(prompt)
    world.compute(first, 100)
    world.compute(second, 1)
    assert second.table.blocks[:3] == first.table.blocks[:3]
    assert second.computed == 13


def test_eviction_takes_the_end_of_a_context_first() -> None:
    world = World(4)
    run = world.start(list(range(16)))
    world.compute(run, 100)
    world.stop(run)
    other = world.start([90, 91, 92, 93, 94])
    assert world.compute(other, 5)
    world.stop(other)
    assert world.start(list(range(16))).computed == 8


def test_growth_beyond_the_pool_changes_nothing() -> None:
    pool = BlockPool(2, PrefixIndex("model"))
    table = BlockTable(pool, SIZE)
    assert not table.grow(9)
    assert (table.blocks, pool.free) == ([], 2)
    assert table.grow(8)
    assert pool.take() is None


def test_other_model_never_matches() -> None:
    ids = tuple(range(SIZE))
    one, other = PrefixIndex("one"), PrefixIndex("other")
    one.add(0, one.root, ids)
    assert one.find(other.root, ids) is None
    assert chain(one.root, ids) != chain(other.root, ids)
