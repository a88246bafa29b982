"""The disk tier over real files: what is kept is found, what is damaged is not, and nobody's death or company spoils it."""

from __future__ import annotations

import os
import queue
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcode_backend.kv import blockfile
from kcode_backend.kv.blockfile import BlockName, Damaged, StoredBlock
from kcode_backend.kv.disk import DiskTier, Load
from kcode_backend.kv.prefix import chain
from kcode_backend.kv.sweep import sweep

SIZE = 4
DATA_BYTES = 600
SPACE = b"s" * 16
ROOT = bytes(16)
BACKEND = Path(__file__).resolve().parents[3] / "backend"


def content(parent: bytes, tokens: tuple[int, ...]) -> bytes:
    """Bytes that no other context has."""
    return (chain(parent, tokens) * (DATA_BYTES // 16 + 1))[:DATA_BYTES]


def blocks_of(ids: tuple[int, ...]) -> list[StoredBlock]:
    blocks: list[StoredBlock] = []
    parent = ROOT
    for start in range(0, len(ids), SIZE):
        tokens = ids[start : start + SIZE]
        blocks.append(StoredBlock(parent, tokens, content(parent, tokens)))
        parent = chain(parent, tokens)
    return blocks


Open = Callable[..., DiskTier]


@pytest.fixture
def open_tier(tmp_path: Path) -> Iterator[Open]:
    tiers: list[DiskTier] = []

    def begin(space: bytes = SPACE, budget_bytes: int = 1 << 30) -> DiskTier:
        tiers.append(DiskTier(tmp_path / "kv", space, SIZE, DATA_BYTES, budget_bytes))
        return tiers[-1]

    yield begin
    for tier in tiers:
        tier.close(5)


def load(tier: DiskTier, ids: tuple[int, ...]) -> list[StoredBlock]:
    """All blocks that the tier has for a prompt, each checked."""
    arrived: queue.SimpleQueue[StoredBlock | None] = queue.SimpleQueue()
    tier.load(Load(ROOT, ids, lambda _, block: arrived.put(block)))
    found: list[StoredBlock] = []
    while (block := arrived.get(timeout=20)) is not None:
        tier.taken()
        assert block.data == content(block.parent, block.tokens), "a block with another's content"
        found.append(block)
    return found


def keep(tier: DiskTier, ids: tuple[int, ...]) -> None:
    """Returns when all blocks of the context are written."""
    for block in blocks_of(ids):
        assert tier.keep(block)
    deadline = time.monotonic() + 20
    while any(not tier.following(block.parent) >= {block.name.chain} for block in blocks_of(ids)[-1:]):
        assert time.monotonic() < deadline, "the blocks are not written"
        time.sleep(0.002)


def files(root: Path) -> list[Path]:
    return sorted(root.glob("kv/*/*.kv"))


def test_a_context_is_found_by_another_process_to_its_last_token(open_tier: Open, tmp_path: Path) -> None:
    ids = tuple(range(70))
    keep(open_tier(), ids)
    again = open_tier()
    assert load(again, ids) == blocks_of(ids)
    # More blocks than may be in flight at once, and a prompt that goes on.
    assert load(again, (*ids, 1, 2, 3)) == blocks_of(ids)
    assert load(again, ids[:30]) == blocks_of(ids)[:8], "the last block shares its first two tokens"
    assert load(again, (5, *ids)) == []
    assert load(open_tier(space=b"t" * 16), ids) == [], "another space"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)}
    assert (modes, stat.S_IMODE((tmp_path / "kv").stat().st_mode)) == ({0o600}, 0o700)


def test_of_several_branches_the_longest_beginning_is_found(open_tier: Open) -> None:
    tier = open_tier()
    for last in ((9, 9, 9, 9), (4, 5, 9, 9), (4, 5, 6, 9)):
        keep(tier, (0, 1, 2, 3, *last))
    assert [block.tokens for block in load(tier, (0, 1, 2, 3, 4, 5, 6, 7))] == [(0, 1, 2, 3), (4, 5, 6, 9)]


def test_a_partial_block_goes_when_its_continuation_comes(open_tier: Open, tmp_path: Path) -> None:
    tier = open_tier()
    keep(tier, (0, 1, 2, 3, 4, 5))
    keep(tier, (0, 1, 2, 3, 4, 5, 6))
    deadline = time.monotonic() + 20
    while len(files(tmp_path)) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert load(tier, (0, 1, 2, 3, 4, 5, 6)) == blocks_of((0, 1, 2, 3, 4, 5, 6))


@pytest.mark.parametrize("harm", ["flip", "truncate", "extend", "empty", "swap"])
def test_a_damaged_file_is_a_miss_and_goes(open_tier: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str) -> None:
    ids = tuple(range(12))
    keep(open_tier(), ids)
    blocks = blocks_of(ids)
    folder = files(tmp_path)[0].parent
    victim, other = folder / blocks[1].name.file, folder / blocks[2].name.file
    data = victim.read_bytes()
    match harm:
        case "flip":
            victim.write_bytes(data[:-9] + bytes([data[-9] ^ 4]) + data[-8:])
        case "truncate":
            victim.write_bytes(data[:-1])
        case "extend":
            victim.write_bytes(data + b"x")
        case "empty":
            victim.write_bytes(b"")
        case _:
            victim.write_bytes(other.read_bytes())
    tier = open_tier()
    assert load(tier, ids) == blocks[:1]
    assert load(tier, ids) == blocks[:1]
    assert not victim.exists()
    assert [record.message.split(":")[0] for record in caplog.records] == [f"removed the cached block {victim}"]


@given(st.binary(max_size=900), st.integers(0, 700), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_no_damaged_bytes_pass_for_the_block(tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, byte: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "damage"
    folder.mkdir(exist_ok=True)
    block = blocks_of((1, 2, 3, 4))[0]
    blockfile.write(folder, SPACE, block)
    path = folder / block.name.file
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[at % len(whole)] ^= byte
    for data in (bytes(changed), whole[:at], junk, junk + whole):
        path.write_bytes(data)
        if data == whole:
            assert blockfile.read(folder, SPACE, block.name, DATA_BYTES) == block
        else:
            with pytest.raises(Damaged):
                blockfile.read(folder, SPACE, block.name, DATA_BYTES)


WRITER = """
import itertools, sys
from pathlib import Path
from kcode_backend.kv.blockfile import StoredBlock
from kcode_backend.kv.disk import DiskTier
from kcode_backend.kv.prefix import chain

tier = DiskTier(Path(sys.argv[1]), b"s" * 16, 4, 600, int(sys.argv[2]))
print("ready", flush=True)
for number in itertools.count(int(sys.argv[3])):
    parent = bytes(16)
    for start in range(0, 40, 4):
        tokens = (number, *range(start, start + 3))
        after = chain(parent, tokens)
        while not tier.keep(StoredBlock(parent, tokens, (after * 38)[:600])):
            pass
        parent = after
"""


@contextmanager
def writer(folder: Path, budget_bytes: int, first: int) -> Generator[subprocess.Popen[str]]:
    """A process that writes one context after another until it is killed; it is ready to when the body begins."""
    command = [sys.executable, "-c", WRITER, str(folder), str(budget_bytes), str(first)]
    environment = {**os.environ, "PYTHONPATH": str(BACKEND)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def check_all(folder: Path) -> int:
    """Every file under a block's name is that block; returns how many there are."""
    count = 0
    for path in folder.glob("*/*.kv"):
        name = blockfile.parse_name(path.name)
        assert name is not None
        try:
            block = blockfile.read(path.parent, SPACE, name, DATA_BYTES)
        except FileNotFoundError:
            continue
        assert block.data == content(block.parent, block.tokens)
        count += 1
    return count


def test_killed_writers_leave_only_whole_blocks(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    for number in range(12):
        with writer(folder, 1 << 30, number * 1_000_000) as process:
            time.sleep(0.01 + 0.007 * number)
            process.send_signal(signal.SIGKILL)
        check_all(folder)
    assert check_all(folder) > 10
    for path in folder.glob("*/.tmp-*"):
        os.utime(path, (0, 0))
    sweep(folder, 1 << 30)
    assert not list(folder.glob("*/.tmp-*")), "what the dead left is tidied up"


def test_two_processes_share_a_folder_and_its_budget(tmp_path: Path) -> None:
    folder, budget = tmp_path / "kv", 200_000
    with writer(folder, budget, 0), writer(folder, budget, 1_000_000):
        for _ in range(10):
            time.sleep(0.1)
            check_all(folder)
    assert check_all(folder) > 10
    assert sum(path.stat().st_size for path in folder.glob("*/*")) < 2 * budget
    swept = sweep(folder, budget)
    assert swept
    assert swept.kept_bytes <= budget


def test_eviction_takes_what_was_used_least_recently_and_ends_first(open_tier: Open, tmp_path: Path) -> None:
    tier = open_tier()
    old, used, new = ((n, *range(11)) for n in (100, 200, 300))
    for ids in (old, used, new):
        keep(tier, ids)
    folder = files(tmp_path)[0].parent
    for age, ids in ((300, old), (200, used), (100, new)):
        for block in blocks_of(ids):
            at = time.time() - age
            os.utime(folder / block.name.file, (at, at))
    # The use of its end keeps all that it builds upon.
    tier.used(blocks_of(used)[-1].name.chain)
    deadline = time.monotonic() + 20
    while (folder / blocks_of(used)[-1].name.file).stat().st_mtime < time.time() - 60:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    one = files(tmp_path)[0].stat().st_size
    # Of nine blocks five stay: the used context, and of the new one all but its end.
    swept = sweep(tmp_path / "kv", int(5.5 * one))
    assert swept
    left = {blockfile.parse_name(path.name) for path in files(tmp_path)}
    assert left == {block.name for block in blocks_of(used)} | {block.name for block in blocks_of(new)[:2]}


def test_no_room_means_no_wait(open_tier: Open, tmp_path: Path) -> None:
    tier = open_tier()
    (tmp_path / "kv").chmod(0o700)
    for path in (tmp_path / "kv").glob("*"):
        if path.is_dir():
            path.rmdir()
    assert tier.keep(blocks_of((1, 2, 3, 4))[0])
    deadline = time.monotonic() + 20
    while tier.writable:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert not tier.keep(blocks_of((1, 2, 3, 5))[0])
    assert load(tier, (1, 2, 3, 4)) == []


def test_names_say_what_files_hold() -> None:
    name = blocks_of(tuple(range(6)))[1].name
    assert blockfile.parse_name(name.file) == BlockName(chain(ROOT, (0, 1, 2, 3)), name.chain, 2)
    assert blockfile.parse_name("../" + name.file) is None
    assert blockfile.parse_name("lock") is None
