"""A file is protected under all of its names, and one outside is not written through a name inside."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from kcode_sandbox.links import MAX_SINGLE, LinkSearch, protect_all
from tests.sandbox.conftest import Start, bash, git

MONITOR = "printf '[core]\\n\\tfsmonitor = touch {ran}; false\\n' >> keep"


async def test_a_name_that_an_earlier_session_gave_the_configuration_is_of_no_use(
    start: Start, workspace: Path, tmp_path: Path
) -> None:
    first = await start()
    assert (
        await bash(first, "git init -q . && ln .git/config keep && mkdir node_modules && ln keep node_modules/keep")
    ).held == ()
    await first.close()
    ran = tmp_path / "ran"
    second = await start()
    for place in (".", "node_modules"):
        result = await bash(second, f"cd {place} && {MONITOR.format(ran=ran)}")
        assert b"Read-only file system" in result.output
    await second.close()
    git(workspace, "status")
    assert not ran.exists()


async def test_a_file_outside_is_not_written_through_its_name_inside(start: Start, workspace: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (workspace / "linked").hardlink_to(outside)
    (workspace / "one").write_text("1")
    (workspace / "two").hardlink_to(workspace / "one")
    sandbox = await start()
    assert (await bash(sandbox, "echo 2 > two; cat one linked")).output == b"2\nmine"
    result = await bash(sandbox, "echo x >> linked")
    assert outside.read_text() == "mine"
    assert [violation.what for violation in result.violations] == [str(workspace / "linked")]
    assert "hard link" in result.violations[0].rule
    assert "cp -r" in result.violations[0].advice


def test_a_store_that_projects_share_is_read_only_as_a_whole(workspace: Path, tmp_path: Path) -> None:
    store = workspace / "node_modules/.pnpm"
    (store / "left@1").mkdir(parents=True)
    (tmp_path / "shared.js").write_text("1")
    (store / "left@1/index.js").hardlink_to(tmp_path / "shared.js")
    (workspace / "node_modules/other.js").hardlink_to(tmp_path / "shared.js")
    found = protect_all((workspace,), ())
    assert found.readonly == [store]


def test_of_very_many_the_folders_are_held(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (workspace / "src/deep").mkdir(parents=True)
    for number in range(MAX_SINGLE + 1):
        file = tmp_path / f"other/{number}"
        file.touch()
        (workspace / f"src/deep/{number}").hardlink_to(file)
    (workspace / "free").touch()
    assert protect_all((workspace,), ()).readonly == [workspace / "src"]


def test_objects_of_a_repository_cloned_from_a_neighbour_are_left_alone(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "--quiet", "--local", str(repository), str(copy))
    assert LinkSearch((copy,)).result()
    found = protect_all((copy,), ())
    assert {path.parent.name for path in found.readonly} == {".git"}
    found.release()


def test_links_are_found_without_the_program_find(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "in").mkdir()
    (workspace / "in/one").touch()
    (workspace / "two").hardlink_to(workspace / "in/one")
    found = LinkSearch((workspace, workspace / "in")).result()
    monkeypatch.setattr("kcode_sandbox.links.PROGRAM", "find-that-is-not-there")
    assert sorted(LinkSearch((workspace, workspace / "in")).result()) == sorted(found)
    assert len(found) == 2


def test_a_search_that_has_ended_can_be_stopped_and_leaves_nothing_open(workspace: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for use in (LinkSearch.stop, LinkSearch.result):
            search = LinkSearch((workspace,))
            use(search)
            search.stop()
            before = len(os.listdir("/proc/self/fd"))
            del search
            assert len(os.listdir("/proc/self/fd")) == before
