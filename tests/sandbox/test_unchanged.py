"""The walk after a command reads only folders that changed: nothing that a command can do makes a changed one look unchanged."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from kcode_sandbox.guard import Guard
from kcode_sandbox.repositories import protect
from kcode_sandbox.unchanged import SETTLED_NS, Unchanged, trusted_devices
from tests.sandbox.conftest import Start, bash, git, names

PLACES = ("stamped", "swapped/deep", "other/deep", "filled", "linked/inner", "nested", "young")


def opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def is_read_again(unchanged: Unchanged, top: int, place: str) -> bool:
    unchanged.begin()
    return unchanged.inner(top, place) is None


async def settle() -> None:
    await asyncio.sleep(SETTLED_NS / 1e9 + 0.2)


async def test_what_is_planted_in_folders_that_were_known_is_held(start: Start, workspace: Path) -> None:
    for place in PLACES:
        (workspace / place).mkdir(parents=True)
    git(workspace / "nested", "init", "--quiet", "inner")
    (workspace / "inner-file").write_text("x")
    sandbox = await start()
    await settle()
    assert (await bash(sandbox, "true")).held == ()
    attack = """
        cp --attributes-only -p -r . /tmp/times
        echo x > stamped/.envrc; touch -r /tmp/times/stamped stamped
        mv swapped/deep swapped/x; mv other/deep swapped/deep; mkdir swapped/deep/.vscode; touch -d @0 swapped/deep swapped
        mkdir filled/.idea && rmdir filled/.idea && mkdir filled/.claude; touch -d @0 filled
        mv linked/inner moved; ln -s ../moved linked/inner; echo x > moved/.mcp.json; touch -h -d @0 linked/inner linked moved
        rm inner-file; mkdir inner-file; echo x > inner-file/.envrc; touch -d @0 inner-file .
        git init -q nested/new; git -C nested/new config core.fsmonitor x; touch -d @0 nested nested/new
    """
    result = await bash(sandbox, attack)
    expected = ["stamped/.envrc", "swapped/deep/.vscode", "filled/.claude", "moved/.mcp.json", "inner-file/.envrc"]
    assert sorted(result.held) == sorted([*expected, "nested/new/.git/config"]), result.output
    assert ".envrc.held-by-kcode" in names(workspace / "stamped")


@pytest.mark.slow
def test_no_number_of_folders_hides_what_is_planted(tmp_path: Path) -> None:
    # Folders are read in no order that could be relied on: with a limit some of those beside the many would be left out.
    beside = [tmp_path / f"beside-{number}" for number in range(10)]
    many = tmp_path / "many"
    for folder in (*beside, many):
        folder.mkdir()
    for number in range(50_001):
        (many / str(number)).mkdir()
    for folder in beside:
        (folder / ".envrc").write_text("x")
    assert {folder / ".envrc" for folder in beside} <= protect(tmp_path).known
    assert sorted(Guard(tmp_path, frozenset()).sweep()) == sorted(f"{folder.name}/.envrc" for folder in beside)


async def test_a_repository_is_read_each_time_since_its_files_change_without_its_folder(start: Start, workspace: Path) -> None:
    sandbox = await start()
    assert (await bash(sandbox, "git init -q n && mkdir bare && git init -q --bare bare && touch .git-not")).held == ()
    await settle()
    assert (await bash(sandbox, "true")).held == ()
    in_place = "printf '[core]\\n\\tfsmonitor = x\\n' >> n/.git/config; printf '[core]\\n\\tfsmonitor = x\\n' >> bare/config"
    assert sorted((await bash(sandbox, in_place)).held) == ["bare/config", "n/.git/config"]


async def test_a_quiet_folder_is_known_once_it_is_old_and_not_before(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    unchanged, top, fd = Unchanged(), opened(tmp_path), opened(folder)
    try:
        assert unchanged.stamp(fd) is None
        await settle()
        stamp = unchanged.stamp(fd)
        assert (stamp is not None) == (os.stat(folder).st_dev in trusted_devices())
        unchanged = Unchanged(frozenset({os.stat(folder).st_dev}))
        unchanged.note("a", unchanged.stamp(fd), ("a/b",))
        unchanged.begin()
        assert unchanged.inner(top, "a") == ("a/b",)
        before = os.stat(folder)
        (folder / "new").touch()
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert is_read_again(unchanged, top, "a")
        assert is_read_again(unchanged, top, "a"), "what was not met in a walk is forgotten"
    finally:
        os.close(fd)
        os.close(top)


async def test_a_file_system_that_is_not_known_to_keep_times_is_read_each_time(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    try:
        await settle()
        assert Unchanged(frozenset()).stamp(folder) is None
    finally:
        os.close(folder)
    (tmp_path / ".envrc").write_text("x")
    assert Guard(tmp_path, frozenset()).sweep() == [".envrc"]
