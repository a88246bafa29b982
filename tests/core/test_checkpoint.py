"""Snapshots over real git, in and out of repositories."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from kcode.checkpoint import Checkpoints
from kcode.errors import CheckpointFailed
from tests.core.conftest import Open, call, collect


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.email=a@example.org", "-c", "user.name=A"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def make_repository(folder: Path) -> None:
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("*.log\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "start")


def contents(folder: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith(".git/") or name == ".git":
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_bytes() + (b" x" if os.access(path, os.X_OK) else b"")
    return found


@pytest.fixture(params=["repository", "plain folder"])
def tree(request: pytest.FixtureRequest, workspace: Path) -> Path:
    (workspace / ".gitattributes").write_text("*.txt text eol=crlf\n*.py filter=evil ident\n")
    (workspace / "mixed.txt").write_bytes(b"one\r\ntwo\n$Id$\n")
    (workspace / "naïve name\n.py").write_text("print()\n")
    (workspace / "folder").mkdir()
    (workspace / "folder" / "run.sh").write_text("#!/bin/sh\n")
    (workspace / "folder" / "run.sh").chmod(0o755)
    (workspace / "link").symlink_to("/etc")
    if request.param == "repository":
        make_repository(workspace)
    return workspace


@pytest.fixture
def checkpoints(workspace: Path, tmp_path: Path) -> Checkpoints:
    return Checkpoints(workspace, tmp_path / "store")


async def test_restore_brings_everything_back_and_is_undoable(tree: Path, checkpoints: Checkpoints) -> None:
    before = contents(tree)
    snapshot = await checkpoints.snapshot()
    (tree / "mixed.txt").write_text("changed\n")
    (tree / "folder" / "run.sh").unlink()
    (tree / "link").unlink()
    (tree / "link").mkdir()
    (tree / "link" / "file").write_text("x")
    (tree / "new").mkdir()
    (tree / "new" / "file").write_text("x")
    after = contents(tree)
    later = await checkpoints.snapshot()
    await checkpoints.restore(snapshot)
    assert contents(tree) == before
    assert not (tree / "new").exists()
    await checkpoints.restore(later)
    assert contents(tree) == after


async def test_ignored_large_and_debris_files_are_left_alone(workspace: Path, checkpoints: Checkpoints) -> None:
    make_repository(workspace)
    snapshot = await checkpoints.snapshot()
    for name in ("run.log", "__pycache__/calc.pyc", "node_modules/a.js"):
        (workspace / name).parent.mkdir(exist_ok=True)
        (workspace / name).write_text("x")
    (workspace / "large.bin").write_bytes(b"0" * (3 << 20))
    assert await checkpoints.diff(snapshot) == ""
    await checkpoints.restore(snapshot)
    assert (workspace / "run.log").exists()
    assert (workspace / "large.bin").exists()


async def test_the_users_index_refs_and_hooks_are_untouched(workspace: Path, checkpoints: Checkpoints) -> None:
    make_repository(workspace)
    (workspace / "staged.py").write_text("x\n")
    git(workspace, "add", "staged.py")
    git(workspace, "config", "filter.evil.clean", "touch ran-clean; cat")
    git(workspace, "config", "core.fsmonitor", "touch ran-fsmonitor; false")
    (workspace / ".gitattributes").write_text("* filter=evil\n")
    for hook in ("post-checkout", "post-index-change", "reference-transaction"):
        script = workspace / ".git" / "hooks" / hook
        script.write_text("#!/bin/sh\ntouch ran-hook\n")
        script.chmod(0o755)
    index = (workspace / ".git" / "index").read_bytes()
    refs = git(workspace, "for-each-ref")
    snapshot = await checkpoints.snapshot()
    (workspace / "calc.py").write_text("changed\n")
    await checkpoints.diff(snapshot)
    await checkpoints.restore(snapshot)
    assert (workspace / ".git" / "index").read_bytes() == index
    assert git(workspace, "-c", "core.fsmonitor=false", "for-each-ref") == refs
    assert [name for name in os.listdir(workspace) if name.startswith("ran-")] == []


async def test_workspace_below_the_repository_root_stays_below_it(workspace: Path, tmp_path: Path) -> None:
    make_repository(workspace)
    inner = workspace / "inner"
    inner.mkdir()
    (inner / "a.py").write_text("1\n")
    checkpoints = Checkpoints(inner, tmp_path / "store")
    snapshot = await checkpoints.snapshot()
    (inner / "a.py").write_text("2\n")
    (workspace / "calc.py").write_text("outside\n")
    assert "calc.py" not in await checkpoints.diff(snapshot)
    await checkpoints.restore(snapshot)
    assert (inner / "a.py").read_text() == "1\n"
    assert (workspace / "calc.py").read_text() == "outside\n"


async def test_diff_can_be_applied(workspace: Path, tmp_path: Path, checkpoints: Checkpoints) -> None:
    make_repository(workspace)
    snapshot = await checkpoints.snapshot()
    (workspace / "calc.py").write_text("def add(a, b):\n    return a + b\n")
    (workspace / "new.py").write_text("x = 1\n")
    wanted = contents(workspace)
    patch = await checkpoints.diff(snapshot)
    await checkpoints.restore(snapshot)
    (tmp_path / "diff.patch").write_text(patch)
    git(workspace, "apply", str(tmp_path / "diff.patch"))
    assert contents(workspace) == wanted


async def test_a_snapshot_of_what_changed_is_the_snapshot_of_everything(tree: Path, tmp_path: Path) -> None:
    kept = Checkpoints(tree, tmp_path / "store")
    chance = random.Random(7)
    names = ["a", "a.b", "a-b", "a/b", "a/b/c", "dir/x.py", "dir.py", "dir/y/z", "naïve name\n.py", "mixed.txt"]
    for round_number in range(25):
        for name in chance.sample(names, 3):
            path = tree / name
            if any(parent.is_file() for parent in path.parents) or chance.random() < 0.4:
                for part in [path, *path.parents]:
                    if part.is_relative_to(tree) and part != tree and part.is_file():
                        part.unlink()
            if path.is_dir():
                shutil.rmtree(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            if chance.random() < 0.7:
                path.unlink(missing_ok=True)
                if chance.random() < 0.2:
                    path.symlink_to("/etc/passwd")
                else:
                    path.write_text(f"{chance.randrange(4)}\n")
                    path.chmod(chance.choice([0o644, 0o755]))
        # Its own store, so that nothing is remembered.
        afresh = Checkpoints(tree, tmp_path / f"afresh{round_number}")
        assert await kept.snapshot() == await afresh.snapshot()
    before = contents(tree)
    snapshot = await kept.snapshot()
    shutil.rmtree(tree / "dir", ignore_errors=True)
    (tree / "a").unlink() if (tree / "a").is_file() else shutil.rmtree(tree / "a", ignore_errors=True)
    await kept.restore(snapshot)
    assert contents(tree) == before


async def test_a_lock_of_a_killed_git_stops_nothing(workspace: Path, tmp_path: Path, checkpoints: Checkpoints) -> None:
    await checkpoints.snapshot()
    (tmp_path / "store" / "index.lock").write_text("")
    (workspace / "calc.py").write_text("2\n")
    again = Checkpoints(workspace, tmp_path / "store")
    assert await again.snapshot() == await checkpoints.snapshot()


async def test_empty_folder_can_be_snapshotted(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    checkpoints = Checkpoints(folder, tmp_path / "store")
    snapshot = await checkpoints.snapshot()
    (folder / "a").write_text("x\n")
    await checkpoints.restore(snapshot)
    assert list(folder.iterdir()) == []


async def test_unknown_snapshot_is_refused(workspace: Path, checkpoints: Checkpoints) -> None:
    with pytest.raises(CheckpointFailed, match="no longer kept"):
        await checkpoints.restore("0" * 40)


async def test_second_snapshot_is_fast(workspace: Path, checkpoints: Checkpoints) -> None:
    for number in range(200):
        (workspace / f"file{number}.py").write_text(f"{number}\n" * 50)
    make_repository(workspace)
    await checkpoints.snapshot()
    durations: list[float] = []
    # 25 ms alone on a slow two-core machine. On a busy one a single quiet moment is enough.
    while min(durations, default=1) >= 0.1 and len(durations) < 100:
        (workspace / "calc.py").write_text(f"{len(durations)}\n")
        started = time.perf_counter()
        await checkpoints.snapshot()
        durations.append(time.perf_counter() - started)
    assert min(durations) < 0.1


async def test_prune_drops_what_is_old(workspace: Path, tmp_path: Path, checkpoints: Checkpoints) -> None:
    await checkpoints.prune()
    old = await checkpoints.snapshot()
    (workspace / "calc.py").write_text("2\n")
    new = await checkpoints.snapshot()
    os.utime(tmp_path / "store" / "refs" / "kcode" / old, (0, 0))
    await checkpoints.prune()
    await checkpoints.restore(new)
    with pytest.raises(CheckpointFailed):
        await checkpoints.restore(old)


async def test_undo_takes_back_files_and_messages(open_session: Open, workspace: Path) -> None:
    session = await open_session(
        {"text": "hello"},
        {"calls": [call("create", path="new.py", content="x\n"), call("str_replace", path="calc.py", old="a - b", new="a + b")]},
        {"calls": [call("bash", command="rm calc.py")]},
        {"text": "done"},
    )
    await collect(session, "hi")
    said, before = session.messages, contents(workspace)
    await collect(session, "change everything")
    assert "deleted file mode" in await session.diff()
    assert "took back 'change everything': 2 files changed" in await session.undo()
    assert (contents(workspace), session.messages) == (before, said)
    assert "it changed no files" in await session.undo()
    assert await session.undo() == "there is no turn to take back"
