"""Clones of a workspace: what happens in one stays in it, and comes back only by a merge that overwrites nothing."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from kcode_sandbox.clone import Clone, Conflict, open_clone
from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.policy import Policy, Profile
from tests.sandbox.conftest import Start, bash, git, names


class Clones:
    """Opens started clones of the test's workspace; all are discarded at the end."""

    def __init__(self, policy: Policy, folder: Path, stack: AsyncExitStack) -> None:
        self.policy = policy
        self.folder = folder
        self._stack = stack

    async def open(self) -> Clone:
        clone = await open_clone(self.policy, self.folder)
        self._stack.push_async_callback(clone.discard)
        await clone.sandbox.start()
        return clone


@pytest_asyncio.fixture(loop_scope="session")
async def clones(policy: Policy, tmp_path: Path) -> AsyncIterator[Clones]:
    async with AsyncExitStack() as stack:
        yield Clones(policy, tmp_path / "store", stack)


def apply(patch: bytes, folder: Path) -> None:
    subprocess.run(["git", "apply", "--whitespace=nowarn"], cwd=folder, input=patch, check=True)


async def kinds(clone: Clone) -> dict[str, str]:
    return {change.path: change.kind for change in await clone.changes()}


def tree(folder: Path) -> dict[str, str]:
    """Every file and link below, without `.git`."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.split("/")[0] == ".git":
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = f"{stat.S_IMODE(path.stat().st_mode) & 0o111:o} {path.read_bytes()!r}"
    return found


def furnish(folder: Path) -> None:
    (folder / "pkg" / "deep").mkdir(parents=True)
    (folder / "pkg" / "one.py").write_text("1\n2\n3\n4\n5\n6\n7\n8\n9\n")
    (folder / "pkg" / "deep" / "two.py").write_text("two\n")
    (folder / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "link").symlink_to("a.txt")
    (folder / "data.bin").write_bytes(bytes(range(256)) * 40)
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "--quiet", "--message=second")


EVERYTHING = r"""
set -e
echo more >> a.txt
chmod +x tool.sh
rm pkg/one.py
mv pkg/deep pkg/moved
rm -rf pkg/deep; mkdir pkg/deep; echo new > pkg/deep/other.py
ln -sfn tool.sh link
printf '\0\1\2' > data.bin
rm .gitignore; mkdir .gitignore.d; echo x > .gitignore.d/x
mkdir -p "with space"; echo ü > "with space/ü
line"
git init -q nested; echo n > nested/n.txt
mkdir -p __pycache__; echo junk > __pycache__/m.pyc
git commit -qam inside
"""


async def test_nothing_of_a_clone_reaches_the_workspace_until_it_is_merged(
    clones: Clones, repository: Path, start: Start
) -> None:
    furnish(repository)
    before, head = tree(repository), git(repository, "rev-parse", "HEAD")
    clone = await clones.open()
    assert clone.workspace == repository
    done = await bash(clone.sandbox, EVERYTHING)
    assert done.exit_code == 0, done.output
    assert tree(repository) == before
    merge = await clone.merge(await start())
    assert merge.conflicts == ()
    after = tree(repository)
    assert after == {
        ".gitignore.d/x": "0 b'x\\n'",
        "a.txt": "0 b'one\\nmore\\n'",
        "data.bin": "0 b'\\x00\\x01\\x02'",
        "link": "-> tool.sh",
        "nested/n.txt": "0 b'n\\n'",
        "pkg/deep/other.py": "0 b'new\\n'",
        "pkg/moved/two.py": "0 b'two\\n'",
        "tool.sh": "111 b'#!/bin/sh\\n'",
        "with space/ü\nline": "0 b'\\xc3\\xbc\\n'",
    }
    assert git(repository, "rev-parse", "HEAD") == head


async def test_the_patch_makes_the_same_tree_as_the_merge(clones: Clones, repository: Path, tmp_path: Path) -> None:
    furnish(repository)
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(repository), str(other))
    clone = await clones.open()
    assert (await bash(clone.sandbox, EVERYTHING)).exit_code == 0
    patch = await clone.patch()
    apply(patch, other)
    inside = await bash(clone.sandbox, "find . -name .git -prune -o -name __pycache__ -prune -o -type f -print0 | sort -z")
    listed = {os.fsdecode(name).removeprefix("./") for name in inside.output.split(b"\0") if name}
    patched = tree(other)
    assert {name for name, shown in patched.items() if not shown.startswith("->")} == listed
    clone_of_other = {name: (await clone.sandbox.read(name)).data for name in listed}
    assert {name: (other / name).read_bytes() for name in listed} == clone_of_other
    assert os.access(other / "tool.sh", os.X_OK)
    assert os.readlink(other / "link") == "tool.sh"


async def test_what_git_ignores_and_what_steers_programs_stays_in_the_clone(
    clones: Clones, repository: Path, start: Start
) -> None:
    clone = await clones.open()
    await bash(clone.sandbox, "mkdir ignored; echo 1 > ignored/x; echo 2 > run.log; echo 3 > .envrc; echo 4 > fine; mkfifo pipe")
    merge = await clone.merge(await start())
    assert merge.applied == ("fine",)
    assert [(item.path, item.reason.split(";")[0]) for item in merge.left_out] == [
        (".envrc", "it would run or steer programs outside"),
        ("pipe", "it is neither a file nor a link"),
    ]
    assert names(repository) == [".git", ".gitignore", "a.txt", "fine"]


async def test_what_changed_meanwhile_is_a_conflict_and_stays(clones: Clones, repository: Path, start: Start) -> None:
    for name in ("b", "c", "d", "e", "same"):
        (repository / name).write_text(f"{name}\n")
    clone = await clones.open()
    await bash(clone.sandbox, "for f in a.txt b c d same; do echo clone > $f; done; echo clone > fresh; rm e; echo ok > ok")
    (repository / "a.txt").write_text("user\n")
    (repository / "replacement").write_text("user\n")
    (repository / "replacement").rename(repository / "b")
    (repository / "c").unlink()
    (repository / "d").unlink()
    (repository / "d").mkdir()
    (repository / "e").write_text("user\n")
    (repository / "fresh").write_text("user\n")
    (repository / "same").write_text("clone\n")
    merge = await clone.merge(await start())
    assert merge.applied == ("ok",)
    assert merge.conflicts == (
        Conflict("e", "e was changed meanwhile"),
        Conflict("a.txt", "a.txt was changed meanwhile"),
        Conflict("b", "b was changed meanwhile"),
        Conflict("c", "c was deleted meanwhile"),
        Conflict("d", "d became a folder meanwhile"),
        Conflict("fresh", "fresh was changed meanwhile"),
    )
    kept = {name: (repository / name).read_text() for name in ("a.txt", "b", "e", "fresh", "same")}
    assert kept == {"a.txt": "user\n", "b": "user\n", "e": "user\n", "fresh": "user\n", "same": "clone\n"}


async def test_two_clones_that_changed_other_lines_of_one_file_both_arrive(
    clones: Clones, repository: Path, start: Start
) -> None:
    furnish(repository)
    first, second, third = [await clones.open() for _ in range(3)]
    await bash(first.sandbox, "sed -i 's/^2$/two/' pkg/one.py")
    await bash(second.sandbox, "sed -i 's/^8$/eight/' pkg/one.py")
    await bash(third.sandbox, "sed -i 's/^8$/EIGHT/' pkg/one.py")
    into = await start()
    assert (await first.merge(into, [second, third])).conflicts == ()
    assert (await second.merge(into, [third])).conflicts == ()
    conflicts = (await third.merge(into)).conflicts
    assert conflicts == (Conflict("pkg/one.py", "pkg/one.py was changed meanwhile, in the same lines"),)
    assert (repository / "pkg" / "one.py").read_text() == "1\ntwo\n3\n4\n5\n6\n7\neight\n9\n"


async def test_links_of_the_clone_lead_no_merge_outside(clones: Clones, repository: Path, start: Start, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (repository / "folder").mkdir()
    (repository / "folder" / "f").write_text("1\n")
    clone = await clones.open()
    await bash(clone.sandbox, f"rm -rf folder; ln -s {outside} folder; ln -s {outside}/secret leaf")
    assert (await clone.merge(await start())).conflicts == ()
    assert os.readlink(repository / "folder") == str(outside)
    second = await clones.open()
    await bash(second.sandbox, "rm folder; mkdir folder; echo 2 > folder/f")
    (repository / "folder").unlink()
    (repository / "folder").symlink_to(outside)
    conflicts = (await second.merge(await start())).conflicts
    assert {item.path for item in conflicts} == {"folder", "folder/f"}
    assert names(outside) == []


async def test_a_worktrees_shared_git_folder_is_copied_on_write_too(clones: Clones, repository: Path, tmp_path: Path) -> None:
    linked = (tmp_path / "linked").resolve()
    git(repository, "worktree", "add", "--quiet", str(linked))
    before = git(repository, "for-each-ref")
    clones.policy = replace(clones.policy, workspace=linked)
    clone = await clones.open()
    done = await bash(clone.sandbox, "echo 2 > a.txt && git commit -qam inside && git branch other && git log --oneline | wc -l")
    assert done.output.strip() == b"2"
    assert git(repository, "for-each-ref") == before


async def test_a_clone_leaves_nothing_behind(clones: Clones, repository: Path) -> None:
    (repository / "big").mkdir()
    clone = await clones.open()
    await bash(clone.sandbox, "mkdir -p a/b; touch a/b/c; chmod 0 a/b")
    await clone.discard()
    assert all(name.startswith("trash-") for name in names(clones.folder))
    await clone.discard()


async def test_a_service_outside_is_not_reachable_by_its_socket_in_a_clone(clones: Clones, workspace: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(workspace / "service.sock"))
        listener.listen()
        clone = await clones.open()
        script = "import socket; socket.socket(socket.AF_UNIX).connect('service.sock')"
        done = await clone.sandbox.exec(["python3", "-c", script], timeout_s=30)
    assert done.exit_code == 1, done.output


async def test_the_clone_lives_on_when_its_processes_were_killed(clones: Clones, workspace: Path) -> None:
    clone = await clones.open()
    await bash(clone.sandbox, "echo kept > kept; kill -9 -1")
    assert (await clone.sandbox.read("kept")).data == b"kept\n"
    assert await kinds(clone) == {"kept": "added"}


@pytest.mark.parametrize("profile", ["read-only", "danger-full-access"])
async def test_there_is_no_copy_where_nothing_is_written_behind_walls(policy: Policy, tmp_path: Path, profile: Profile) -> None:
    with pytest.raises(SandboxUnavailableError, match=rf"{profile}.*--sandbox workspace-write"):
        await open_clone(replace(policy, profile=profile), tmp_path / "store")
    assert not (tmp_path / "store").exists()
