"""The sandbox without namespaces: the same contract, and what only it does."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from kcode_sandbox.bubblewrap import BubblewrapBackend
from kcode_sandbox.client import WorkerSandbox
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.landlock import fault_of_kernel
from kcode_sandbox.policy import Limits, Policy
from kcode_sandbox.violation import Violation
from tests.sandbox.conftest import SECRET, Start, bash, exists, found, git, names, processes_with

pytestmark = pytest.mark.skipif(bool(fault_of_kernel()), reason=fault_of_kernel() or "it can be had")


async def test_it_says_that_it_is_the_weaker_one(start: Start) -> None:
    sandbox = await start(backend="landlock")
    assert sandbox.description == "Landlock (degraded) · workspace-write · network off"


async def test_files_go_through_it(start: Start, home: Path) -> None:
    sandbox = await start(backend="landlock")
    stat = await sandbox.write("folder/a.txt", b"text")
    assert (await sandbox.read("folder/a.txt")).data == b"text"
    assert stat.size == 4
    result = await bash(sandbox, f"cat {home}/.ssh/id_ed25519; ls {home}; echo x > {home}/new; echo after > b; cat b")
    assert SECRET not in result.output.decode()
    assert result.output.endswith(b"after\n")
    assert not exists(home / "new")


async def test_reading_is_all_a_read_only_one_does(start: Start, workspace: Path) -> None:
    (workspace / "a").write_text("kept")
    sandbox = await start(backend="landlock", profile="read-only")
    result = await bash(sandbox, 'echo x > a; echo x > b; cat a; echo scratch > "$TMPDIR/c" && cat "$TMPDIR/c"')
    assert result.output.endswith(b"keptscratch\n")
    assert names(workspace) == ["a"]


async def test_the_shell_has_its_terminal_and_its_jobs(start: Start) -> None:
    shell = await (await start(backend="landlock")).shell()
    result = await shell.run("tty && test -t 0 -o -t 1 && export A=1; sleep 1000 & kill %1; wait; cd /usr", 30)
    assert result.exit_code == 0
    result = await shell.run("echo $A; pwd", 30)
    assert result.output == b"1\n/usr\n"


async def test_nothing_outside_can_be_signalled_or_traced(start: Start) -> None:
    sandbox = await start(backend="landlock")
    result = await bash(sandbox, f"kill -0 {os.getpid()} && echo REACHED; kill -9 -1; cat /proc/{os.getpid()}/environ")
    assert b"REACHED" not in result.output
    assert (await bash(sandbox, "echo alive")).output == b"alive\n"


async def test_no_socket_leads_out(start: Start) -> None:
    script = (
        "import socket\n"
        "for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):\n"
        "    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
        "        try: socket.socket(family, kind); print('MADE', family, kind)\n"
        "        except PermissionError: pass\n"
        "try: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); print('MADE a pair')\n"
        "except PermissionError: pass\n"
        "left, right = socket.socketpair(); left.send(b'x'); print(right.recv(1))\n"
    )
    result = await (await start(backend="landlock")).exec(["python3", "-c", script], timeout_s=60)
    assert result.output == b"b'x'\n"


async def test_what_steers_git_is_put_back(start: Start, repository: Path) -> None:
    sandbox = await start(backend="landlock")
    before = (repository / ".git/config").read_text()
    result = await bash(
        sandbox, "git config core.fsmonitor 'touch x'; rm -rf .git/hooks; ln -s .. .git/hooks; echo ../e > .git/commondir"
    )
    assert set(result.held) == {".git/config", ".git/hooks", ".git/commondir"}
    assert [violation.kind for violation in result.violations if isinstance(violation, Violation)] == ["held"]
    assert (repository / ".git/config").read_text() == before
    assert (repository / ".git/hooks").is_dir()
    assert not (repository / ".git/hooks").is_symlink()
    assert not exists(repository / ".git/commondir")
    result = await bash(
        sandbox, "echo new > new; git add new && git -c user.name=T -c user.email=t@example.org commit -qm second"
    )
    assert (result.exit_code, result.held) == (0, ())
    assert "second" in git(repository, "log", "--oneline")


async def test_a_link_in_the_way_is_taken_away_and_never_followed(start: Start, repository: Path, home: Path) -> None:
    sandbox = await start(backend="landlock")
    (home / "other").mkdir()
    result = await bash(sandbox, f"mv .git real; ln -s {home}/other .git")
    assert ".git" in result.held
    assert list((home / "other").iterdir()) == []


async def test_a_changed_environment_is_taken_away(start: Start, workspace: Path) -> None:
    packages = workspace / ".venv/lib/python3/site-packages/package"
    packages.mkdir(parents=True)
    (workspace / ".venv/pyvenv.cfg").write_text("home = /usr/bin\n")
    (packages / "__init__.py").write_text("")
    sandbox = await start(backend="landlock")
    assert (await bash(sandbox, "true")).held == ()
    assert (await bash(sandbox, "echo 'import os' > .venv/lib/python3/site-packages/x.pth")).held == (".venv",)


async def test_a_changed_module_of_an_environment_is_found_at_the_end(start: Start, workspace: Path) -> None:
    packages = workspace / ".venv/lib/python3/site-packages/package"
    packages.mkdir(parents=True)
    (workspace / ".venv/pyvenv.cfg").write_text("home = /usr/bin\n")
    (packages / "__init__.py").write_text("")
    sandbox = await start(backend="landlock")
    await bash(sandbox, "echo x > .venv/lib/python3/site-packages/package/__init__.py")
    await sandbox.close()
    assert not exists(workspace / ".venv")
    assert exists(workspace / ".venv.held-by-kcode")


async def test_everything_ends_with_it(start: Start) -> None:
    sandbox = await start(backend="landlock")
    await bash(sandbox, "setsid sleep 481516 >/dev/null 2>&1 & disown")
    home = (await bash(sandbox, "echo $HOME")).output.decode().strip()
    await sandbox.close()
    assert processes_with("481516") == []
    assert not exists(Path(home))


async def test_what_a_killed_one_left_on_the_disk_goes_with_the_next_start(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp/kcode-session-dead/home").mkdir(parents=True)
    (tmp_path / "tmp/kcode-other").mkdir()
    first = await start(backend="landlock")
    second = await start(backend="landlock")
    assert len(found(tmp_path / "tmp", "kcode-session-*")) == 2
    assert exists(tmp_path / "tmp/kcode-other")
    assert not exists(tmp_path / "tmp/kcode-session-dead")
    for sandbox in (first, second):
        assert (await bash(sandbox, "echo kept > $HOME/x && cat $HOME/x")).output == b"kept\n"
        await sandbox.close()
    assert found(tmp_path / "tmp", "kcode-session-*") == []


BOMBS = {
    "processes": ("b() { b | b & }; b; sleep 1; true", "at most 64 processes"),
    "memory": ("python3 -c 'x = bytearray(2 << 30); x[:] = b\"1\" * len(x)'", "MemoryError|memory"),
    "files": ("head -c 20M /dev/zero > big", "File size limit exceeded|file"),
}


@pytest.mark.parametrize("kind", list(BOMBS))
async def test_a_bomb_ends_with_its_reason_and_the_session_goes_on(start: Start, kind: str) -> None:
    script, words = BOMBS[kind]
    sandbox = await start(backend="landlock", limits=Limits(processes=64, memory_bytes=512 << 20, file_bytes=8 << 20))
    shell = await sandbox.shell()
    result = await shell.run(script, 60)
    told = "\n".join(violation.sentence for violation in result.violations)
    assert re.search(words, f"{result.output.decode()}\n{told}"), result
    await shell.restart()
    assert (await shell.run("echo goes on", 60)).output == b"goes on\n"
    assert (await bash(sandbox, "echo goes on")).output == b"goes on\n"


async def test_it_is_never_chosen_by_itself(policy: Policy, tmp_path: Path) -> None:
    denied = tmp_path / "bwrap"
    denied.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    denied.chmod(0o755)
    with pytest.raises(SandboxUnavailableError, match=r"namespaces are denied.*choose.*--sandbox-backend landlock"):
        await WorkerSandbox(policy, BubblewrapBackend([denied])).start()


async def test_hosts_cannot_be_allowed_one_by_one(policy: Policy) -> None:
    with pytest.raises(SandboxUnavailableError, match=r"network namespace.*--network off or on"):
        await open_sandbox(replace(policy, backend="landlock", network="allow-list")).start()


async def test_its_own_code_must_lie_elsewhere(policy: Policy, workspace: Path) -> None:
    (workspace / "kcode").mkdir()
    with pytest.raises(SandboxUnavailableError, match="cannot make it read-only"):
        await open_sandbox(replace(policy, backend="landlock", protect=(workspace / "kcode",))).start()
