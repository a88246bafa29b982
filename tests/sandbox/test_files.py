from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import Sandbox
from tests.sandbox.conftest import Start, git, names


@pytest.fixture
def workspace(emptied: Path) -> Path:
    return emptied


@pytest.fixture
def sandbox(shared: Sandbox, workspace: Path) -> Sandbox:
    """Both backends keep the same contract."""
    return shared


EVERY_BYTE = bytes(range(256)) * 300


async def test_bytes_come_back_as_they_were_written(sandbox: Sandbox, workspace: Path) -> None:
    written = await sandbox.write("deep/folder/data.bin", EVERY_BYTE)
    content = await sandbox.read("deep/folder/data.bin")
    assert content.data == EVERY_BYTE == (workspace / "deep/folder/data.bin").read_bytes()
    assert content.stat == written
    assert written.path == str(workspace / "deep/folder/data.bin")
    assert written.sha256 == hashlib.sha256(EVERY_BYTE).hexdigest()


async def test_read_gives_the_part_asked_for_and_the_hash_of_the_whole(sandbox: Sandbox) -> None:
    await sandbox.write("data.bin", EVERY_BYTE)
    part = await sandbox.read("data.bin", offset=256, max_bytes=16)
    assert part.data == bytes(range(16))
    assert part.stat.size == len(EVERY_BYTE)
    assert part.stat.sha256 == hashlib.sha256(EVERY_BYTE).hexdigest()


async def test_write_refuses_a_file_that_changed_since_it_was_read(sandbox: Sandbox, workspace: Path) -> None:
    await sandbox.write("a.txt", b"one")
    seen = (await sandbox.read("a.txt")).stat.sha256
    (workspace / "a.txt").write_text("by another hand")
    with pytest.raises(FileError) as refused:
        await sandbox.write("a.txt", b"two", expect_sha256=seen)
    assert (refused.value.code, refused.value.path) == ("STALE", "a.txt")
    assert (workspace / "a.txt").read_text() == "by another hand"
    assert names(workspace) == ["a.txt"]


async def test_an_empty_expectation_creates_but_never_replaces(sandbox: Sandbox, workspace: Path) -> None:
    await sandbox.write("new.txt", b"one", expect_sha256="")
    with pytest.raises(FileError) as refused:
        await sandbox.write("new.txt", b"two", expect_sha256="")
    assert refused.value.code == "STALE"
    assert (workspace / "new.txt").read_bytes() == b"one"


async def test_write_keeps_permissions_and_follows_the_link_to_the_file(sandbox: Sandbox, workspace: Path) -> None:
    (workspace / "run.sh").write_text("old")
    (workspace / "run.sh").chmod(0o751)
    (workspace / "link").symlink_to("run.sh")
    stat = await sandbox.write("link", b"new")
    assert stat.mode == 0o751
    assert stat.path == str(workspace / "run.sh")
    assert (workspace / "link").is_symlink()
    assert (workspace / "run.sh").read_text() == "new"


async def test_write_never_writes_through_a_hard_link(sandbox: Sandbox, workspace: Path, home: Path) -> None:
    (home / "cache.py").write_text("shared")
    os.link(home / "cache.py", workspace / "lib.py")
    await sandbox.write("lib.py", b"changed")
    assert (home / "cache.py").read_text() == "shared"
    assert (workspace / "lib.py").read_text() == "changed"


async def test_writers_at_once_leave_one_whole_file(sandbox: Sandbox, workspace: Path) -> None:
    contents = [bytes([65 + number]) * 200_000 for number in range(8)]
    await asyncio.gather(*(sandbox.write("contended", content) for content in contents))
    assert (workspace / "contended").read_bytes() in contents
    assert names(workspace) == ["contended"]


@pytest.mark.parametrize(
    ("path", "code"),
    [("missing.txt", "ENOENT"), ("folder", "EISDIR"), ("pipe", "EINVAL"), ("loop", "ELOOP"), ("x" * 300, "ENAMETOOLONG")],
)
async def test_read_names_what_is_wrong(sandbox: Sandbox, workspace: Path, path: str, code: str) -> None:
    (workspace / "folder").mkdir()
    os.mkfifo(workspace / "pipe")
    (workspace / "loop").symlink_to("loop")
    with pytest.raises(FileError) as failure:
        async with asyncio.timeout(30):
            await sandbox.read(path)
    assert failure.value.code == code
    assert path in str(failure.value)


async def test_write_over_a_folder_or_below_a_file_is_refused(sandbox: Sandbox, workspace: Path) -> None:
    (workspace / "folder").mkdir()
    (workspace / "file").write_text("")
    for path, code in (("folder", "EISDIR"), ("file/below", "ENOTDIR")):
        with pytest.raises(FileError) as failure:
            await sandbox.write(path, b"")
        assert failure.value.code == code


async def test_without_parents_a_missing_folder_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(FileError) as failure:
        await sandbox.write("none/file", b"", create_parents=False)
    assert failure.value.code == "ENOENT"


async def test_remove_takes_links_not_their_targets_and_spares_the_workspace(sandbox: Sandbox, workspace: Path) -> None:
    (workspace / "folder/sub").mkdir(parents=True)
    (workspace / "keep").write_text("")
    (workspace / "link").symlink_to("keep")
    await sandbox.remove("link")
    await sandbox.remove("folder")
    with pytest.raises(FileError, match="workspace itself"):
        await sandbox.remove(".")
    assert names(workspace) == ["keep"]


async def test_stat_tells_kinds_apart(sandbox: Sandbox, workspace: Path) -> None:
    os.mkfifo(workspace / "pipe")
    assert (await sandbox.stat(".")).kind == "dir"
    assert (await sandbox.stat("pipe")).kind == "other"
    assert (await sandbox.stat(".")).path == str(workspace)


async def test_list_follows_gitignore_and_nested_repositories_newest_first(
    start: Start, repository: Path, workspace: Path
) -> None:
    nested = workspace / "vendor/lib"
    nested.mkdir(parents=True)
    git(nested, "init", "--quiet")
    for number, name in enumerate(["ignored/x.py", "b.log", "src/ü ß.py", "vendor/lib/inner.py", "fresh.py"]):
        (workspace / name).parent.mkdir(exist_ok=True)
        (workspace / name).write_text(name)
        os.utime(workspace / name, ns=(0, (number + 4) * 10**18 // 2))
    (workspace / "a.txt").unlink()
    os.utime(workspace / ".gitignore", ns=(0, 0))
    sandbox = await start()
    assert [entry.path for entry in await sandbox.list_files()] == ["fresh.py", "vendor/lib/inner.py", "src/ü ß.py", ".gitignore"]
    assert [entry.path for entry in await sandbox.list_files("src")] == ["src/ü ß.py"]
    assert [entry.path for entry in await sandbox.list_files(max_files=1)] == ["fresh.py"]


async def test_list_without_git_skips_what_nobody_edits(sandbox: Sandbox, workspace: Path) -> None:
    for name in ("a.py", "node_modules/x/index.js", "src/__pycache__/a.pyc", "src/b.py"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text("")
    assert sorted(entry.path for entry in await sandbox.list_files()) == ["a.py", "src/b.py"]


async def test_list_of_a_missing_folder_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(FileError) as failure:
        await sandbox.list_files("nowhere")
    assert failure.value.code == "ENOTDIR"


async def test_read_only_profile_reads_and_runs_but_writes_nothing(start: Start, workspace: Path) -> None:
    (workspace / "a.txt").write_text("text")
    sandbox = await start(profile="read-only")
    assert (await sandbox.read("a.txt")).data == b"text"
    with pytest.raises(FileError) as refused:
        await sandbox.write("a.txt", b"other")
    assert refused.value.code in ("EROFS", "EACCES")
    result = await sandbox.exec(["sh", "-c", "echo x >b.txt; echo y >/tmp/scratch && cat /tmp/scratch"], timeout_s=30)
    assert result.output.endswith(b"y\n")
    assert names(workspace) == ["a.txt"]
