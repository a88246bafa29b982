from __future__ import annotations

import asyncio
import signal
import stat
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kcode_sandbox.bubblewrap import BubblewrapBackend, explain, find_fault
from kcode_sandbox.client import WorkerSandbox
from kcode_sandbox.detect import candidates, open_sandbox, probe
from kcode_sandbox.errors import SandboxDiedError, SandboxUnavailableError
from kcode_sandbox.landlock import fault_of_kernel
from kcode_sandbox.policy import Policy
from kcode_sandbox.protocol import Head
from kcode_sandbox.sandbox import Sandbox
from kcode_sandbox.worker import landlock
from tests.sandbox.conftest import Start, background, bash, exists, listening, names, processes_seen, processes_with

SANDBOX = Path(landlock.__file__).parents[2]
LEAVES_DAEMONS = "sleep 31350 & (setsid sleep 31350 &); exec sleep 31350"
CLIENT = """
import asyncio, sys
from pathlib import Path
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.policy import Policy
from kcode_sandbox.worker import landlock

async def main():
    sandbox = open_sandbox(Policy(Path(sys.argv[1]), profile=sys.argv[2], backend=sys.argv[3]))
    await sandbox.start()
    shell = await sandbox.shell()
    await shell.run("(setsid sleep 31351 &); sleep 31351 &", 10)
    asyncio.create_task(sandbox.exec(["sh", "-c", "setsid sleep 31351 & sleep 31351"], timeout_s=60))
    await asyncio.sleep(0.5)
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def gone(text: str, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while processes_with(text):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


async def test_close_ends_everything_and_may_be_called_again(sandbox: Sandbox) -> None:
    running = asyncio.create_task(bash(sandbox, LEAVES_DAEMONS, timeout_s=60))
    assert len(await processes_seen("sleep\x0031350", 3)) == 3
    await sandbox.close()
    assert await gone("31350")
    await sandbox.close()
    with pytest.raises(SandboxDiedError):
        await running
    with pytest.raises(SandboxDiedError, match="not running"):
        await sandbox.read("a")


WEAKER = [] if fault_of_kernel() else [("workspace-write", "landlock")]


@pytest.mark.parametrize(("profile", "backend"), [("workspace-write", "auto"), ("danger-full-access", "auto"), *WEAKER])
async def test_nothing_survives_the_sudden_death_of_the_client(workspace: Path, profile: str, backend: str) -> None:
    with background(sys.executable, "-c", CLIENT, workspace, profile, backend) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        assert len(await processes_seen("sleep\x0031351", 4)) == 4
        client.send_signal(signal.SIGKILL)
    assert await gone("sleep\x0031351")
    assert await gone(str(workspace))


WORKER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from kcode_sandbox.worker import processes

processes.prctl(processes.PR_SET_CHILD_SUBREAPER, 1)
null = os.open(os.devnull, os.O_RDWR)
script = "setsid sleep 31361 & sleep 31361"
child = processes.spawn(["sh", "-c", script], "/", os.environ, processes.Stdio(null, null, null))
sys.stdin.readline()
"""
KILLED_HALFWAY = """
real = processes.send_signal
def send_signal(pid, number):
    if number == signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(pid, number)
processes.send_signal = send_signal
processes.kill_supervised()
"""
HEARS_OF_NO_END = """
os.close(child.status_fd)
for pid in processes.descendants(child.pid)[:1]:
    os.kill(pid, signal.SIGKILL)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", [KILLED_HALFWAY, HEARS_OF_NO_END], ids=["killed halfway", "hears of no end"])
async def test_a_supervisor_ends_its_tree_however_the_worker_goes(end: str) -> None:
    """Without a namespace the end of its input and the signal of the client's death reach the worker in either order."""
    with listening(sys.executable, "-c", WORKER + end, SANDBOX) as worker:
        assert worker.stdin is not None
        assert len(await processes_seen("sleep\x0031361", 2)) == 2
        worker.stdin.write(b"end\n")
        worker.stdin.flush()
        assert await gone("sleep\x0031361")


KILL_THE_WORKER = "for p in /proc/[0-9]*; do grep -q worker.main $p/cmdline && kill -9 ${p#/proc/}; done; sleep 20"


async def test_a_command_that_kills_the_worker_costs_only_itself(sandbox: Sandbox, workspace: Path) -> None:
    """The commands run as the same user, so they can."""
    script = KILL_THE_WORKER if "bubblewrap" in sandbox.description else "kill -9 $(ps -o ppid= $PPID)"
    other = asyncio.create_task(bash(sandbox, "sleep 31352", timeout_s=60))
    await asyncio.sleep(0.3)
    result = await bash(sandbox, script)
    assert result.exit_code == 137
    assert b"the next call starts it anew" in result.output
    async with asyncio.timeout(30):
        assert (await other).exit_code == 137
    assert (await bash(sandbox, "pwd")).output == f"{workspace}\n".encode()
    assert await gone("31352")
    shell = await sandbox.shell()
    assert (await shell.run(script, 30)).exit_code == 137
    assert (await shell.run("echo back", 30)).output == b"back\n"


def fake_bwrap(folder: Path, script: str) -> Path:
    path = folder / "bwrap"
    path.write_text(f"#!/bin/sh\n{textwrap.dedent(script)}")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('while [ "$1" != -- ]; do shift; done; shift; exec "$@"', "self-check failed|No module|does not exist"),
        ("exit 0", "sandbox ended"),
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "kernel.unprivileged_userns_clone"),
        ("echo nonsense", "protocol"),
    ],
)
async def test_walls_that_do_not_stand_stop_the_start(policy: Policy, tmp_path: Path, script: str, words: str) -> None:
    sandbox = WorkerSandbox(policy, BubblewrapBackend([fake_bwrap(tmp_path, script)]))
    with pytest.raises(SandboxUnavailableError, match=words):
        await sandbox.start()
    with pytest.raises(SandboxDiedError):
        await bash(sandbox, "touch ran")
    assert not exists(policy.workspace / "ran")


async def test_a_wall_without_a_mount_is_noticed(policy: Policy, tmp_path: Path) -> None:
    real = next(candidate.path for candidate in candidates() if not candidate.fault)
    for flag, words in (
        ("--cap-drop ALL", "capabilities|CapEff"),
        ("--unshare-all", "network|reached"),
        ("--seccomp", "Seccomp"),
    ):
        name, *value = flag.split()
        skip = 2 if value or name == "--seccomp" else 1
        edited = fake_bwrap(
            tmp_path,
            f"""
            n=$#; drop=0
            while [ $n -gt 0 ]; do
              if [ "$1" = {name} ]; then drop={skip}; fi
              if [ $drop -gt 0 ]; then drop=$((drop - 1)); else set -- "$@" "$1"; fi
              shift; n=$((n - 1))
            done
            exec {real} --unshare-pid --unshare-ipc --unshare-uts "$@"
            """,
        )
        with pytest.raises(SandboxUnavailableError, match=words):
            await WorkerSandbox(policy, BubblewrapBackend([edited])).start()
    through = fake_bwrap(tmp_path, f'exec {real} "$@"')
    sandbox = WorkerSandbox(policy, BubblewrapBackend([through]))
    await sandbox.start()
    await sandbox.close()


async def test_the_second_fence_holds_where_a_mount_is_too_wide(policy: Policy, home: Path, tmp_path: Path) -> None:
    """A folder bound writable by mistake."""
    if not landlock.version():
        pytest.skip("this kernel has no Landlock: nothing but the mounts holds here")
    real = next(candidate.path for candidate in candidates() if not candidate.fault)
    outside = home / "outside"
    outside.mkdir()
    (outside / "there").write_text("seen")
    wide = fake_bwrap(
        tmp_path,
        f"""
        n=$#
        while [ $n -gt 0 ]; do
          if [ "$1" = --hostname ]; then set -- "$@" --bind {outside} /srv; fi
          set -- "$@" "$1"
          shift; n=$((n - 1))
        done
        exec {real} "$@"
        """,
    )
    backend = BubblewrapBackend([wide])
    sandbox = WorkerSandbox(policy, backend)
    await sandbox.start()
    try:
        result = await bash(sandbox, "cat /srv/there && echo x > /srv/file; rm /srv/there; mkdir /srv/folder")
    finally:
        await sandbox.close()
    assert result.output.startswith(b"seen"), "the mistake was not made"
    assert names(outside) == ["there"]
    assert backend.landlock == landlock.version()


async def test_the_next_binary_is_tried_when_one_fails(policy: Policy, tmp_path: Path) -> None:
    real = next(candidate.path for candidate in candidates() if not candidate.fault)
    sandbox = WorkerSandbox(policy, BubblewrapBackend([fake_bwrap(tmp_path, "exit 1"), real]))
    await sandbox.start()
    assert (await bash(sandbox, "echo ok")).output == b"ok\n"
    await sandbox.close()


def test_without_any_bwrap_nothing_opens(policy: Policy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kcode_sandbox.detect.SYSTEM_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(SandboxUnavailableError, match="bubblewrap"):
        open_sandbox(policy)


def test_a_setuid_or_foreign_bwrap_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = fake_bwrap(tmp_path, "echo bubblewrap 0.7.0")
    monkeypatch.setattr("kcode_sandbox.detect.SYSTEM_FOLDERS", (str(tmp_path),))
    assert "older than 0.8" in candidates()[0].fault
    fake_bwrap(tmp_path, "echo hello")
    assert "not bubblewrap" in candidates()[0].fault
    path.chmod(0o755 | stat.S_ISUID)
    assert "setuid" in candidates()[0].fault


def test_probe_starts_a_real_sandbox() -> None:
    report = probe()
    assert report.works, report
    assert report.detail == "bubblewrap · workspace-write · network off"


def test_every_missing_fact_is_a_fault(policy: Policy) -> None:
    good: Head = {
        "cap_eff": "0" * 16,
        "cap_bnd": "0" * 16,
        "no_new_privs": "1",
        "seccomp": "2",
        "canary_readable": False,
        "port_reachable": False,
        "namespace_possible": False,
        "environment_names": ["PATH", "PWD"],
        "workspace_writable": True,
        "workspace_readable": True,
        "writable_protected": [],
        "core_pattern_writable": False,
    }
    assert find_fault(good, policy) == ""
    for name in good:
        assert find_fault({key: value for key, value in good.items() if key != name}, policy), name
    assert "TOKEN" in find_fault(good | {"environment_names": ["TOKEN"]}, policy)


def test_known_failures_come_with_their_remedy() -> None:
    assert "max_user_namespaces" in explain("bwrap: Creating new namespace failed: nesting depth exceeded (ENOSPC)")
    assert "AppArmor" in explain("bwrap: setting up uid map: Permission denied")
    assert "systempaths" in explain("bwrap: Can't mount proc on /newroot/proc: Operation not permitted")


async def test_many_sandboxes_live_side_by_side(start: Start) -> None:
    sandboxes = await asyncio.gather(*(start() for _ in range(4)))
    # Each has one of its own and sees no other's.
    script = "sleep 60 & until pgrep -x sleep >/dev/null; do :; done; sleep 0.3; pgrep -xc sleep"
    results = await asyncio.gather(*(bash(sandbox, script) for sandbox in sandboxes))
    assert [result.output for result in results] == [b"1\n"] * 4
