"""Attacks from inside, judged on the host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from pathlib import Path

import pytest

from kcode_sandbox.errors import FileError, SandboxUnavailableError
from kcode_sandbox.policy import Limits
from kcode_sandbox.sandbox import Sandbox
from kcode_sandbox.worker import landlock
from tests.sandbox.conftest import SECRET, Start, background, bash, contents, exists, found, host, names


async def test_the_home_and_its_keys_cannot_be_read(walled: Sandbox, home: Path, workspace: Path) -> None:
    key = home / ".ssh/id_ed25519"
    (workspace / "link").symlink_to(key)
    (workspace / "up").symlink_to("../home")
    for path in (str(key), "link", "up/.ssh/id_ed25519", f"../{home.name}/.ssh/id_ed25519", f"/proc/self/root{key}"):
        with pytest.raises(FileError) as refused:
            await walled.read(path)
        assert refused.value.code in ("ENOENT", "EACCES"), path
    script = f"cat {key} link up/.ssh/id_ed25519 /proc/1/root{key} /proc/self/cwd/../home/.ssh/id_ed25519;"
    script += "find /root /home /tmp /run /var /srv /mnt -name id_ed25519"
    assert SECRET.encode() not in (await bash(walled, script)).output


async def test_root_only_files_of_the_system_are_covered(walled: Sandbox) -> None:
    script = "cat /etc/shadow /etc/gshadow /etc/shadow- /etc/ssh/ssh_host_*_key; echo; find /etc -type f ! -perm -o=r -readable"
    result = await bash(walled, script + " -exec cat {} +")
    assert b"root:" not in result.output
    assert b"PRIVATE KEY" not in result.output


async def test_nothing_outside_can_be_written(walled: Sandbox, home: Path, workspace: Path, tmp_path: Path) -> None:
    (workspace / "out").symlink_to(home)
    for path in ("/etc/new", "/usr/bin/new", "/run/new", "/run/kcode/bin/new", "/new", "/home/new"):
        with pytest.raises(FileError) as refused:
            await walled.write(path, b"x")
        assert refused.value.code == "EROFS", (path, refused.value.code)
    # The workspace of this test lies in /tmp, which is a private folder inside: these may succeed there.
    for path in (f"{home}/new", "out/new", "../new"):
        with contextlib.suppress(FileError):
            await walled.write(path, b"x")
    await bash(walled, f"mkdir -p {home}; echo x > {home}/new; echo x > ../new; echo x > /etc/new; mount -o remount,rw,bind /usr")
    assert names(home) == [".gitconfig", ".ssh"]
    assert names(tmp_path) == ["home", "workspace"]
    assert not exists(Path("/etc/new"))


async def test_swapping_links_under_the_writer_never_leads_outside(walled: Sandbox, home: Path, workspace: Path) -> None:
    victim = home / "victim"
    victim.mkdir()
    (victim / "file").write_text("untouched")
    (workspace / "real").mkdir()
    (workspace / "d").symlink_to("real")
    swapper = f"while :; do ln -sfn {victim} d; ln -sfn real d; done"
    swapping = asyncio.create_task(bash(walled, swapper, timeout_s=3))
    places: set[str] = set()
    while not swapping.done():
        with contextlib.suppress(FileError):
            places.add((await walled.write("d/file", b"changed")).path)
    assert places == {f"{victim}/file", f"{workspace}/real/file"}, "the race was never run"
    assert contents(victim) == {"file": "untouched"}


async def test_the_network_is_out_of_reach(walled: Sandbox, workspace: Path) -> None:
    abstract = f"\0kcode-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(abstract)
        unix.listen()
        port = listener.getsockname()[1]
        code = f"""
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", {port})), (socket.AF_INET, ("192.0.2.1", 80)),
                        (socket.AF_INET6, ("::1", {port})), (socket.AF_UNIX, {abstract!r})):
    s = socket.socket(family)
    s.settimeout(1)
    try:
        s.connect(address)
        print("reached", address)
    except OSError as error:
        print("refused")
for family in (40, 17):
    try:
        socket.socket(family, socket.SOCK_RAW)
        print("opened", family)
    except OSError:
        print("refused")
"""
        result = await walled.exec(["python3", "-c", code], timeout_s=30)
    assert result.output == b"refused\n" * 6


async def test_network_on_reaches_the_host(start: Start) -> None:
    sandbox = await start(network="on")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = f"import socket; socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), 2)"
        assert (await sandbox.exec(["python3", "-c", code], timeout_s=30)).exit_code == 0


async def test_network_on_leaves_the_hosts_abstract_sockets_closed(start: Start) -> None:
    if landlock.version() < landlock.SCOPES_VERSION:
        pytest.skip("this kernel's Landlock does not know abstract sockets")
    sandbox = await start(network="on")
    name = f"\0kcode-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as host:
        host.bind(name)
        host.listen()
        code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({name!r})"
        result = await sandbox.exec(["python3", "-c", code], timeout_s=30)
    assert b"PermissionError" in result.output


async def test_a_server_and_its_client_work_inside(walled: Sandbox) -> None:
    code = """
import socket, threading
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.create_server((host, 0), family=family)
    threading.Thread(target=lambda: server.accept()[0].sendall(b"hi"), daemon=True).start()
    print(socket.create_connection(server.getsockname()[:2]).recv(2))
"""
    assert (await walled.exec(["python3", "-c", code], timeout_s=30)).output == b"b'hi'\nb'hi'\n"


async def test_no_process_inside_holds_a_secret(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KCODE_TEST_TOKEN", SECRET)
    sandbox = await start()
    result = await bash(sandbox, "env; cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'; ls /proc/*/fd/")
    assert SECRET.encode() not in result.output
    assert b"KCODE_TEST_TOKEN" not in result.output


async def test_processes_outside_are_neither_seen_nor_killed(walled: Sandbox) -> None:
    with background("sleep", "60") as outsider:
        try:
            listed = await bash(walled, f"kill -9 {outsider.pid}; ps axo args | grep -c 'sleep 6[0]'")
            killed = await bash(walled, "kill -9 -1; sleep 5")
            alive = outsider.poll() is None
        finally:
            outsider.kill()
    assert alive
    assert b"No such process" in listed.output
    assert listed.output.endswith(b"\n0\n")
    assert killed.exit_code in (137, 0)


async def test_privileges_are_gone_and_stay_gone(walled: Sandbox) -> None:
    status = (await bash(walled, "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'")).output
    assert status == b"CapEff:0000000000000000\nCapBnd:0000000000000000\nNoNewPrivs:1\nSeccomp:2\n"
    attempts = (
        "unshare -Ur true",
        "mount -t tmpfs none /tmp",
        "umount /etc",
        "mount -o remount,bind,rw /",
        "/usr/sbin/chroot / true",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo c > /proc/sysrq-trigger",
        "mknod disk b 8 0 && dd if=disk of=/dev/null count=1",
        "hostname other",
        "chown 12345 .",
        "echo x >> /etc/passwd",
        "ls /root/.bashrc",
        "touch /run/kcode/kcode_sandbox/worker/main.py",
    )
    for attempt in attempts:
        result = await bash(walled, attempt)
        assert result.exit_code not in (0, 127), (attempt, result)


async def test_kernel_side_doors_are_closed(walled: Sandbox) -> None:
    code = """
import ctypes, errno, fcntl, os, pty, termios
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *map(ctypes.c_ulong, arguments))
    return "open" if result >= 0 else errno.errorcode[ctypes.get_errno()]
print(call(425, 1, 0), call(323, 0), call(298, 0, 0, 0, 0, 0), call(321, 0, 0, 0), call(435, 0, 0), call(250, 0, 0))
print(call(56, 0x10000000 | 17, 0, 0, 0, 0), call(0x40000000 | 39))
_, slave = pty.openpty()
for request in (termios.TIOCSTI, termios.TIOCSTI | 1 << 40):
    libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p]
    print("injected" if libc.ioctl(slave, request, b"x") == 0 else errno.errorcode[ctypes.get_errno()])
"""
    if os.uname().machine != "x86_64":
        pytest.skip("the call numbers are those of x86_64")
    result = await walled.exec(["python3", "-c", code], timeout_s=30)
    assert result.output.decode().split() == [
        *("ENOSYS", "EPERM", "EPERM", "EPERM", "ENOSYS", "EPERM"),
        *("EPERM", "ENOSYS"),
        *("EPERM", "EPERM"),
    ]


async def test_a_fork_bomb_is_bounded_and_ends(start: Start) -> None:
    sandbox = await start(limits=Limits(processes=64))
    result = await bash(sandbox, "bomb() { bomb | bomb & }; bomb; sleep 30", timeout_s=2)
    assert result.timed_out
    assert b"Resource temporarily unavailable" in result.output
    assert (await bash(sandbox, "echo alive")).output == b"alive\n"


async def test_memory_files_and_scratch_space_are_bounded(start: Start) -> None:
    sandbox = await start(limits=Limits(memory_bytes=512 << 20, file_bytes=8 << 20, tmp_bytes=4 << 20))
    assert (await bash(sandbox, "python3 -c 'x = bytearray(900 << 20)'")).exit_code != 0
    assert (await bash(sandbox, "head -c 9000000 /dev/zero > big")).exit_code != 0
    assert b"No space left" in (await bash(sandbox, "head -c 5000000 /dev/zero > /tmp/big")).output
    assert (await bash(sandbox, "ulimit -c; ulimit -n")).output == b"0\n4096\n"


async def test_only_three_descriptors_reach_a_command(walled: Sandbox) -> None:
    assert (await bash(walled, "ls /proc/$$/fd; true")).output.split() == [b"0", b"1", b"2"]


async def test_the_worker_cannot_be_taken_over(walled: Sandbox) -> None:
    attack = (
        # No pipe: a program at its end, among the processes looked at, has its libraries open while it starts.
        "for p in /proc/[0-9]*; do [ -e $p/fd/3 ] && ls $p/fd; head -c 10 $p/mem; done > /tmp/seen 2>/dev/null;"
        "wc -c < /tmp/seen; ls -l /proc/2/fd/0"
    )
    result = await bash(walled, attack)
    assert result.output.startswith(b"0\n"), result.output


async def test_the_folder_of_a_command_opens_nothing(walled: Sandbox, workspace: Path, home: Path) -> None:
    result = await walled.exec(["bash", "-c", "echo x > planted; pwd"], timeout_s=30, cwd="/usr")
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, b"/usr"), result.output
    assert b"Read-only file system" in result.output
    assert (await walled.exec(["touch", "here"], timeout_s=30, cwd=str(workspace))).exit_code == 0
    with pytest.raises(FileError, match=str(home)):
        await walled.exec(["touch", "planted"], timeout_s=30, cwd=str(home))
    assert not exists(home / "planted")


async def test_private_folders_are_writable_and_vanish(walled: Sandbox) -> None:
    result = await bash(
        walled, "for d in ~ /tmp /var/tmp /dev/shm $TMPDIR; do echo $RANDOM > $d/kcode-trace || exit 1; done; echo $HOME"
    )
    assert (result.exit_code, result.output) == (0, b"/home/kcode\n")
    assert not exists(Path("/tmp/kcode-trace"))


async def test_tools_of_a_developer_work(walled: Sandbox, workspace: Path) -> None:
    (workspace / "test_sum.py").write_text(
        "import multiprocessing\n\ndef test_sum():\n    with multiprocessing.Pool(2) as p: assert sum(p.map(abs, [-1, 2])) == 3\n"
    )
    (workspace / "a.c").write_text("int main(void) { return 42; }\n")
    result = await walled.exec(["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_sum.py"], timeout_s=60)
    assert b"1 passed" in result.output, result.output
    for script in (
        "id -un && date && getent passwd root",
        "command -v cc >/dev/null || exit 0; cc a.c -o a && ./a; test $? = 42",
        "command -v node >/dev/null || exit 0; node -e 'console.log(1 + 1)' | grep 2",
        "rg --version",
        "diff <(echo a) <(echo a)",
        f"{sys.executable} -m venv --without-pip /tmp/v && /tmp/v/bin/python -c 'import json'",
    ):
        done = await bash(walled, script)
        assert done.exit_code == 0, (script, done.output)


async def test_a_venv_in_the_workspace_runs_but_cannot_be_planted(start: Start, workspace: Path) -> None:
    host(sys.executable, "-m", "venv", "--without-pip", workspace / ".venv")
    sandbox = await start()
    assert (await bash(sandbox, ".venv/bin/python -c 'print(1)'")).output == b"1\n"
    await bash(sandbox, "echo evil > .venv/bin/pytest; mv .venv v2; echo 'import os' > .venv/lib/python3*/site-packages/x.pth")
    assert not exists(workspace / ".venv/bin/pytest")
    assert not found(workspace, ".venv/lib/*/site-packages/x.pth")


@pytest.mark.parametrize("folder", ["/", "/usr", "/tmp", "home", "link", "missing"])
async def test_a_workspace_that_would_open_too_much_is_refused(start: Start, home: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "workspace")
    with pytest.raises(SandboxUnavailableError, match="workspace"):
        await start(workspace=tmp_path / folder)
