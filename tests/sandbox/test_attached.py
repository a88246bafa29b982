"""`kcode sandbox run` and `explain`: as programs that people and their scripts start."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sandbox.conftest import SECRET

LIMIT_S = 60
Command = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "KCODE_HOME": str(home / "kcode"), "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture
def command(workspace: Path, environment: dict[str, str]) -> Command:
    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        argv = [sys.executable, "-m", "kcode", "sandbox", *arguments]
        return subprocess.run(
            argv, input=stdin, capture_output=True, cwd=workspace, env=environment, timeout=LIMIT_S, check=False
        )

    return run


def test_streams_and_exit_code_are_the_commands_own(command: Command, workspace: Path) -> None:
    done = command("run", "--", "bash", "-c", "cat; echo wrong >&2; pwd; exit 7", stdin=b"given\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, f"given\n{workspace}\n".encode(), b"wrong\n")
    assert command("run", "--", "bash", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_large_and_binary_streams_pass_unchanged(command: Command) -> None:
    data = bytes(range(256)) * 200_000
    done = command("run", "--", "cat", stdin=data)
    assert done.returncode == 0
    assert done.stdout == data


def test_the_walls_stand(command: Command, home: Path, workspace: Path) -> None:
    script = f"cat {home}/.ssh/id_ed25519; env; echo x > {home}/new; echo x > inside; ls /proc/self/fd"
    done = command("run", "--", "bash", "-c", script)
    assert SECRET.encode() not in done.stdout + done.stderr
    assert not (home / "new").exists()
    assert (workspace / "inside").read_text() == "x\n"
    # The last one is the folder that ls reads.
    assert done.stdout.split()[-4:] == [b"0", b"1", b"2", b"3"]


def test_profile_folder_and_network_are_as_told(command: Command, workspace: Path, tmp_path: Path) -> None:
    other, third = tmp_path / "other", tmp_path / "third"
    other.mkdir()
    third.mkdir()
    refused = command("run", "--profile", "read-only", "--", "touch", "file")
    assert refused.returncode != 0
    assert b"Read-only" in refused.stderr
    done = command("run", "--cd", str(other), "--writable", str(third), "--", "bash", "-c", f"pwd; touch {third}/file")
    assert (done.returncode, done.stdout) == (0, f"{other}\n".encode())
    assert (third / "file").exists()
    assert not list(workspace.iterdir())


def test_time_is_up_with_124_and_a_word(command: Command) -> None:
    done = command("run", "--timeout", "0.5", "--", "bash", "-c", "sleep 100 & sleep 100")
    assert done.returncode == 124
    assert b"sleep" not in done.stdout
    assert done.stderr == b"kcode: bash was killed after 0.5 s\n"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("run", "--", "no-such-program"), 127, "cannot run no-such-program: No such file"),
        (("run", "--cd", "none", "--", "true"), 1, "--cd none: there is no such folder"),
        (("run", "--cd", "/usr", "--", "true"), 1, "is a folder of the system"),
        (("run", "--network", "some", "--", "true"), 1, "--network 'some' is neither off nor on nor a list of hosts: 'some' is"),
        (("run",), 1, "Missing argument"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(command: Command, arguments: tuple[str, ...], code: int, told: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert told in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_interrupt_ends_all_of_it(workspace: Path, environment: dict[str, str]) -> None:
    # Whoever started the tests in the background has the interrupt ignored, and a program inherits that.
    listening = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-m", "kcode", "sandbox", "run", "--", "bash", "-c", "trap '' INT TERM; touch begun; sleep 1000"]
    argv = [sys.executable, "-c", listening, *command]
    process = subprocess.Popen(argv, cwd=workspace, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: (workspace / "begun").exists())
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) != 0
        # The walls' own process was in a session of its own; whoever still held the folder would be seen by its name.
        wait_for(lambda: not holders(workspace))
    finally:
        process.kill()
        process.wait()


def test_a_terminal_gets_one_of_its_own(workspace: Path, environment: dict[str, str]) -> None:
    pid, user = pty.fork()
    if pid == 0:
        os.chdir(workspace)
        os.execve(sys.executable, [sys.executable, "-m", "kcode", "sandbox", "run", "--", "bash", "--norc"], environment)
    screen = Screen(user)
    try:
        screen.read_until(b"$ ", b"# ")
        screen.type(b"test -t 0 && test -t 1 && echo ter''minal\n")
        screen.read_until(b"terminal\r\n")
        screen.type(b"bash -c 'echo be''gun; sleep 1000'\n")
        screen.read_until(b"begun\r\n")
        screen.type(b"\x03")
        screen.type(b"echo inter''rupted $?\n")
        screen.read_until(b"interrupted 130")
        screen.type(b"exit 9\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    finally:
        os.close(user)


def test_explain_says_what_is_open_and_what_is_not(command: Command, workspace: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=workspace, check=True)
    told = command("explain").stdout.decode()
    for line in (f"  {workspace}", f"  {workspace}/.git/config", "  off: not even this machine's own services"):
        assert line in told.replace("; inside", "\n").splitlines(), line
    document = json.loads(command("explain", "--json", "--profile", "read-only", "--network", "on").stdout)
    assert (document["stands"], document["profile"], document["network"]) == (True, "read-only", "on")
    assert document["writable"] == []
    assert str(workspace) in document["readable"]
    assert not (workspace / ".git/commondir").exists(), "a placeholder was left behind"


class Screen:
    """The user's end of a terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def read_until(self, *wanted: bytes) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not any(text in self._seen for text in wanted):
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{wanted} did not come: {self._seen!r}"
            self._seen += os.read(self._fd, 4096)
        # What came after it is looked through the next time.
        at = min(self._seen.index(text) + len(text) for text in wanted if text in self._seen)
        self._seen = self._seen[at:]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def holders(folder: Path) -> list[str]:
    """Processes that have `folder` as their working folder, by pid."""
    found: list[str] = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if os.readlink(link) == str(folder):
                found.append(link.parent.name)
        except OSError:
            continue
    return found


def test_what_only_grants_need_is_not_loaded_to_run_a_command() -> None:
    code = "import sys, kcode.commands.sandbox; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
