from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import ExecResult, Sandbox
from tests.sandbox.conftest import bash, processes_seen, processes_with


@pytest.fixture
def workspace(emptied: Path) -> Path:
    return emptied


@pytest.fixture
def sandbox(shared: Sandbox, workspace: Path) -> Sandbox:
    """Both backends keep the same contract."""
    return shared


# Leaves the session, the group and the parent behind, and empties its environment.
DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.execve("/bin/sleep", ["sleep", sys.argv[1]], {})
"""


async def test_exit_code_streams_and_folder(sandbox: Sandbox, workspace: Path) -> None:
    (workspace / "sub").mkdir()
    result = await sandbox.exec(
        ["sh", "-c", "pwd; cat; echo $WORD >&2; exit 3"],
        timeout_s=30,
        cwd="sub",
        environment={"WORD": "two words"},
        stdin=b"fed\n",
        separate_stderr=True,
    )
    assert result == ExecResult(3, f"{workspace}/sub\nfed\n".encode(), b"two words\n", False, 0, result.duration_s)


async def test_streams_are_one_unless_kept_apart(sandbox: Sandbox) -> None:
    result = await bash(sandbox, "echo a; echo b >&2; echo c")
    assert (result.output, result.stderr) == (b"a\nb\nc\n", b"")


async def test_a_signal_shows_as_128_and_its_number(sandbox: Sandbox) -> None:
    assert (await bash(sandbox, "kill -SEGV $$")).exit_code == 139


@pytest.mark.parametrize(("argv", "cwd"), [(["no-such-program"], "."), (["true"], "no-such-folder")])
async def test_what_cannot_start_is_named(sandbox: Sandbox, argv: list[str], cwd: str) -> None:
    with pytest.raises(FileError, match="no-such-") as failure:
        await sandbox.exec(argv, timeout_s=30, cwd=cwd)
    assert failure.value.code == "ENOENT"


async def test_timeout_kills_grandchildren_and_daemons_and_keeps_partial_output(sandbox: Sandbox) -> None:
    began = time.monotonic()
    result = await sandbox.exec(
        ["bash", "-c", 'echo before; python3 -c "$0" 31337.5; (trap "" TERM HUP INT; sleep 31337.25); echo after', DAEMON],
        timeout_s=1,
    )
    assert time.monotonic() - began < 30
    assert (result.exit_code, result.timed_out, result.output) == (None, True, b"before\n")
    assert processes_with("31337.") == []


async def test_what_a_command_leaves_behind_ends_with_it(sandbox: Sandbox) -> None:
    result = await sandbox.exec(["bash", "-c", 'python3 -c "$0" 31338.5; sleep 31338 & echo done', DAEMON], timeout_s=30)
    assert (result.exit_code, result.output) == (0, b"done\n")
    assert processes_with("31338") == []


async def test_cancelling_kills_the_tree(sandbox: Sandbox) -> None:
    task = asyncio.create_task(bash(sandbox, "sleep 31339 & sleep 31339"))
    assert len(await processes_seen("sleep\x0031339", 2)) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes_with("31339") == []
    assert (await bash(sandbox, "echo alive")).output == b"alive\n"


async def test_a_long_command_delays_nobody(sandbox: Sandbox) -> None:
    began = asyncio.Event()
    script = "echo began; until [ -e a.txt ]; do sleep 0.05; done; echo slow"
    long = asyncio.create_task(sandbox.exec(["bash", "-c", script], timeout_s=60, on_output=lambda _: began.set()))
    await began.wait()
    results = await asyncio.gather(*(bash(sandbox, f"echo {number}") for number in range(6)))
    assert [result.output for result in results] == [f"{number}\n".encode() for number in range(6)]
    assert not long.done()
    await sandbox.write("a.txt", b"x")
    assert (await long).output == b"began\nslow\n"


async def test_too_much_output_loses_its_middle(sandbox: Sandbox) -> None:
    result = await sandbox.exec(["seq", "1", "400000"], timeout_s=20, max_output=1000)
    assert len(result.output) == 1000
    assert result.output.startswith(b"1\n2\n")
    assert result.output.endswith(b"399999\n400000\n")
    assert result.dropped_bytes == sum(len(f"{number}\n") for number in range(1, 400_001)) - 1000


async def test_output_arrives_while_the_command_runs(sandbox: Sandbox, workspace: Path) -> None:
    seen: list[bytes] = []

    def on_output(data: bytes) -> None:
        seen.append(data)
        (workspace / "seen").touch()

    result = await sandbox.exec(
        ["sh", "-c", "echo first; until [ -e seen ]; do sleep 0.05; done; echo second"], timeout_s=30, on_output=on_output
    )
    assert seen[0] == b"first\n"
    assert b"".join(seen) == result.output == b"first\nsecond\n"


async def test_a_megabyte_through_stdin(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 4096
    assert (await sandbox.exec(["cat"], timeout_s=30, stdin=data)).output == data


async def test_a_program_that_ignores_its_stdin_ends_normally(sandbox: Sandbox) -> None:
    result = await sandbox.exec(["sh", "-c", "exec 0<&-; echo ok"], timeout_s=30, stdin=b"x" * 300_000)
    assert (result.exit_code, result.output) == (0, b"ok\n")


async def test_interrupts_reach_commands(sandbox: Sandbox) -> None:
    script = "trap 'echo caught; exit 7' INT; kill -INT $$; sleep 5"
    assert (await bash(sandbox, script)).exit_code == 7
