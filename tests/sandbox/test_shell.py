from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kcode_sandbox.client import WorkerShell
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import Sandbox, ShellResult
from tests.sandbox.conftest import Start, processes_seen, processes_with

# The shell is the same code in both; the walls are the harder place.
pytestmark = pytest.mark.parametrize("shared", ["workspace-write"], indirect=True)


@pytest.fixture
def workspace(emptied: Path) -> Path:
    return emptied


@pytest_asyncio.fixture(loop_scope="session")
async def shell(shared: Sandbox, workspace: Path) -> AsyncIterator[WorkerShell]:
    shell = await shared.shell()
    assert isinstance(shell, WorkerShell)
    await shell.run(f"cd {workspace}", 30)
    yield shell
    await shell.restart()


async def said(shell: WorkerShell, command: str, timeout_s: float = 30) -> bytes:
    result = await shell.run(command, timeout_s)
    assert result.exit_code is not None, result
    return result.output


async def until_printed(shell: WorkerShell, step: ShellResult, text: bytes) -> None:
    """Waits for what a program prints, which still runs then."""
    output = step.output
    for _ in range(40):
        assert step.exit_code is None
        if text in output:
            return
        step = await shell.send("", 0.5)
        output += step.output
    raise AssertionError(f"{text!r} was never printed: {output!r}")


async def test_folder_variables_functions_and_status_persist(shell: WorkerShell, workspace: Path) -> None:
    (workspace / "sub").mkdir()
    first = await shell.run("cd sub; export WORD=x; hidden=y; greet() { echo hi $1; }; false", 30)
    assert first == ShellResult(1, b"", "", 0, first.duration_s, f"{workspace}/sub")
    second = await shell.run("echo $? $WORD $hidden; greet you; pwd", 30)
    assert second.output == f"1 x y\nhi you\n{workspace}/sub\n".encode()


async def test_it_is_a_terminal_without_echo_or_carriage_returns(shell: WorkerShell) -> None:
    assert await said(shell, "test -t 0 && test -t 1 && test -t 2 && stty size") == b"50 160\n"
    assert await said(shell, r"printf 'a\nb\n'; printf '\033[31mred\033[0m\n'") == b"a\nb\n\x1b[31mred\x1b[0m\n"
    await shell.resize(24, 80)
    assert await said(shell, "stty size; tput cols") == b"24 80\n80\n"


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("cat <<'END'\nit's \"quoted\" $HOME\nEND", b'it\'s "quoted" $HOME\n'),
        ("echo 'unclosed", b"unexpected EOF"),
        ("if", b"syntax error"),
        ("echo !! # not history", b"!!\n"),
        ("printf 'no newline'", b"no newline"),
        ("echo tab\there", b"tab here\n"),
        ("for i in 1 2; do\n  echo $i\ndone", b"1\n2\n"),
        ("set -u; echo ok; set +u", b"ok\n"),
        ("exec 3>/dev/null; echo ü€", "ü€\n".encode()),
        ("", b""),
        ("# only a comment", b""),
        ("echo " + "x" * 20_000, b"x" * 20_000 + b"\n"),
    ],
)
async def test_any_text_is_a_command(shell: WorkerShell, command: str, output: bytes) -> None:
    result = await shell.run(command, 30)
    assert output in result.output if b"\n" not in output and output else result.output == output
    assert await said(shell, "echo next") == b"next\n"


async def test_what_it_prints_cannot_end_a_command_early(shell: WorkerShell) -> None:
    forged = (
        r"printf '\036%s 0 /\036%s\036' aaaa aaaa; tr -d '\n' </proc/$$/environ; sleep 0.2;"
        "echo really; exit_code() { return 5; }; exit_code"
    )
    result = await shell.run(forged, 30)
    assert result.exit_code == 5
    assert result.output.endswith(b"really\n")


async def test_tracing_shows_no_trace_of_the_protocol(shell: WorkerShell) -> None:
    await shell.run("set -x", 30)
    output = await said(shell, "echo traced")
    assert b"+ echo traced\n" in output
    assert b"KCODE" not in output
    assert b"\\036" not in output


async def test_typing_ahead_is_not_a_command(shell: WorkerShell) -> None:
    waiting = await shell.run("sleep 1", 0.2)
    await shell.send("echo typed > typed.txt\n", 2)
    assert waiting.exit_code is None
    assert await said(shell, 'ls; cat -n </dev/null; read -t 0.1 line; echo "$line"') == b"\n"


async def test_a_slow_command_goes_on_as_a_job_and_the_shell_stays_free(shell: WorkerShell, workspace: Path) -> None:
    (workspace / "sub").mkdir()
    await shell.run("cd sub; export WORD=kept", 30)
    slow = await shell.run("echo begun; sleep 3; echo ended; exit_with() { return 4; }; exit_with", 0.8)
    assert (slow.exit_code, slow.output, slow.job_id) == (None, b"begun\n", slow.job_id)
    assert slow.job_id
    assert await said(shell, "echo $WORD; pwd") == f"kept\n{workspace}/sub\n".encode()
    end = await shell.send("", 30, slow.job_id)
    assert (end.exit_code, end.output, end.job_id) == (4, b"ended\n", "")
    with pytest.raises(FileError) as gone:
        await shell.send("", 1, slow.job_id)
    assert gone.value.code == "ESRCH"


async def test_a_repl_is_driven_through_send(shell: WorkerShell) -> None:
    step = await shell.run("python3 -q", 0.7)
    await until_printed(shell, step, b">>> ")
    step = await shell.send("6 * 7\n", 0.7)
    await until_printed(shell, step, b"42")
    ended = await shell.send("raise SystemExit(9)\n", 30)
    assert (ended.exit_code, ended.job_id) == (9, "")
    assert await said(shell, "echo back") == b"back\n"


async def test_control_c_ends_a_loop_and_leaves_the_shell(shell: WorkerShell) -> None:
    await shell.run("here=1; while true; do sleep 1; done", 0.4)
    stopped = await shell.send("\x03", 30)
    assert stopped.exit_code == 130
    assert await said(shell, "echo $here") == b"1\n"


async def test_control_z_and_fg(shell: WorkerShell) -> None:
    await shell.run("sleep 3", 0.3)
    stopped = await shell.send("\x1a", 30)
    assert stopped.exit_code == 148
    assert b"Stopped" in stopped.output
    assert b"sleep 3" in await said(shell, "fg")


async def test_cancelling_interrupts_the_command_and_keeps_the_shell(shell: WorkerShell) -> None:
    await shell.run("here=1", 30)
    task = asyncio.create_task(shell.run("sleep 31340", 60))
    await asyncio.sleep(0.4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes_with("31340") == []
    assert await said(shell, "echo $here") == b"1\n"


async def test_cancelling_kills_what_ignores_the_interrupt(shell: WorkerShell) -> None:
    task = asyncio.create_task(
        shell.run(
            """python3 -c 'import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(31341)'""",
            60,
        )
    )
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(30):
            await task
    assert processes_with("31341") == []
    assert await said(shell, "echo back") == b"back\n"


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("exec true", 0), ("set -e; false", 1), ("kill -9 $$", 137)])
async def test_a_shell_that_ends_is_replaced_with_a_notice(shell: WorkerShell, workspace: Path, command: str, code: int) -> None:
    (workspace / "sub").mkdir()
    await shell.run("cd sub; export WORD=kept", 30)
    ended = await shell.run(command, 30)
    assert ended.exit_code == code
    assert b"[the shell " in ended.output
    assert await said(shell, "echo $WORD; pwd") == f"kept\n{workspace}/sub\n".encode()


async def test_restart_ends_jobs_and_forgets_variables(shell: WorkerShell) -> None:
    await shell.run("export WORD=x", 30)
    await shell.run("sleep 31342", 0.2)
    await shell.restart()
    assert await said(shell, "echo [$WORD]") == b"[]\n"
    assert processes_with("31342") == []


async def test_a_removed_folder_does_not_stop_the_next_shell(shell: WorkerShell, workspace: Path) -> None:
    await shell.run("mkdir gone; cd gone; rmdir ../gone; exit", 30)
    assert await said(shell, "pwd") == f"{workspace}\n".encode()


async def test_background_processes_live_on_until_the_end(start: Start) -> None:
    sandbox = await start()
    shell = await sandbox.shell()
    await shell.run("sleep 31343 & disown; (setsid sleep 31343 &)", 30)
    await shell.run("true", 30)
    assert len(await processes_seen("31343", 2)) == 2
    await sandbox.close()
    assert processes_with("31343") == []


async def test_fifty_megabytes_do_not_break_it(shell: WorkerShell) -> None:
    result = await shell.run("echo first; head -c 50000000 /dev/zero | tr '\\0' x; echo; echo last", 60)
    assert result.exit_code == 0
    assert result.output.startswith(b"first\nxxx")
    assert result.output.endswith(b"xxx\nlast\n")
    assert len(result.output) + result.dropped_bytes == 50_000_000 + len("first\n\nlast\n")
    assert await said(shell, "echo next") == b"next\n"


async def test_output_streams(shell: WorkerShell, workspace: Path) -> None:
    seen: list[bytes] = []

    def on_output(data: bytes) -> None:
        seen.append(data)
        (workspace / "seen").touch()

    result = await shell.run("echo a; until [ -e seen ]; do sleep 0.05; done; echo b", 30, on_output)
    assert b"".join(seen) == result.output == b"a\nb\n"


async def test_raw_mode_left_behind_by_a_program_is_undone(shell: WorkerShell) -> None:
    await shell.run("stty raw echo onlcr opost", 30)
    assert await said(shell, "echo a; stty -a | grep -o -e '-echo ' -e '-opost'") == b"a\n-opost\n-echo \n"


async def test_keys_need_a_program(shell: WorkerShell) -> None:
    with pytest.raises(FileError, match="no program is running") as failure:
        await shell.send("y\n", 1)
    assert failure.value.code == "ESRCH"
