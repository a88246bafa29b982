"""One run of an instance's tests in a fresh tree: the patch, the official tests over it, the test command."""

from __future__ import annotations

import asyncio

from kcode.errors import SandboxFailed, SandboxUnavailable
from kcode_bench.swe.environment import MAX_LOG_BYTES, Environment, EnvironmentFailed, Place, policy_for
from kcode_bench.swe.grading import Apply, TestLog
from kcode_bench.swe.rows import Row
from kcode_bench.swe.specs import Spec, changed_files, tests_line
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.errors import SandboxError, SandboxUnavailableError
from kcode_sandbox.sandbox import Sandbox

APPLY_LIMIT_S = 120.0
# In the order of the official harness.
WAYS = (
    ("git", "apply", "--verbose", "-"),
    ("git", "apply", "--verbose", "--3way", "-"),
    ("git", "apply", "--verbose", "--reject", "-"),
    ("patch", "--batch", "--forward", "--fuzz=5", "-p1"),
)
START = "+ : '>>>>> Start Test Output'\n"
END = "+ : '>>>>> End Test Output'\n"


def run_tests(place: Place, row: Row, spec: Spec, environment: Environment, patch: bytes, limit_s: float) -> TestLog:
    """Test `patch` (b"" for the tree as it was) in a tree made for this run. The place must be held.

    Raises EnvironmentFailed when the row's own tests cannot be laid into the tree, SandboxUnavailable and SandboxFailed.
    """
    place.renew()
    try:
        return asyncio.run(_run(place, row, spec, environment, patch, limit_s))
    except SandboxUnavailableError as error:
        raise SandboxUnavailable(str(error)) from error
    except SandboxError as error:
        raise SandboxFailed(f"{row.instance_id}: while its tests ran: {error}") from error


async def _run(place: Place, row: Row, spec: Spec, environment: Environment, patch: bytes, limit_s: float) -> TestLog:
    sandbox = open_sandbox(policy_for(place, spec, environment.kind))
    await sandbox.start()
    try:
        applied, text = await _apply(sandbox, patch)
        if applied == "failed":
            return TestLog("failed", "", 0, f"{text}>>>>> Patch Apply Failed\n")
        text += await _lay_tests(sandbox, row)
        line = tests_line(spec, row)
        done = await sandbox.exec(["bash", "-c", line], timeout_s=limit_s, max_output=MAX_LOG_BYTES)
    finally:
        await sandbox.close()
    return whole_log(applied, f"{text}{START}+ {line}\n", done.output, done.exit_code, limit_s)


def whole_log(applied: Apply, before: str, output: bytes, exit_code: int | None, limit_s: float) -> TestLog:
    """What a test run wrote, between what came `before` it and how it ended (`exit_code` None: for time).

    All line ends are made "\\n", as the official harness reads them: a carriage return begins a line.
    """
    said = output.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    text = f"{before}{said}{'' if said.endswith(chr(10)) else chr(10)}"
    if exit_code is None:
        return TestLog(applied, said, None, f"{text}>>>>> Tests Timed Out\nTimeout error: {limit_s:.0f} seconds exceeded.\n")
    return TestLog(applied, said, exit_code, f"{text}{END}>>>>> Test Exit Code: {exit_code}\n")


async def _apply(sandbox: Sandbox, patch: bytes) -> tuple[Apply, str]:
    """The official ways one after the other, with a clean tree between them."""
    if not patch.strip():
        return "empty", ""
    text = ""
    for way in WAYS:
        done = await sandbox.exec(way, stdin=patch, timeout_s=APPLY_LIMIT_S)
        text += f"+ {' '.join(way)}\n{done.output.decode('utf-8', errors='replace')}"
        if done.exit_code == 0:
            return "applied", f"{text}>>>>> Applied Patch\n"
        await sandbox.exec(["git", "checkout", "-q", "-f", "HEAD", "--", "."], timeout_s=APPLY_LIMIT_S)
        await sandbox.exec(["git", "clean", "-q", "-fd"], timeout_s=APPLY_LIMIT_S)
    done = await sandbox.exec(["git", "apply", "--check", "--reverse", "-"], stdin=patch, timeout_s=APPLY_LIMIT_S)
    return ("applied" if done.exit_code == 0 else "failed"), text


async def _lay_tests(sandbox: Sandbox, row: Row) -> str:
    """The files of the test patch as they were, whatever the patch made of them, and then the test patch."""
    for name in changed_files(row.test_patch):
        known = await sandbox.exec(["git", "cat-file", "-e", f"HEAD:{name}"], timeout_s=APPLY_LIMIT_S)
        if known.exit_code == 0:
            await sandbox.exec(["git", "checkout", "-q", "-f", "HEAD", "--", f":(literal){name}"], timeout_s=APPLY_LIMIT_S)
        else:
            await sandbox.exec(["rm", "-rf", "--", f"./{name}"], timeout_s=APPLY_LIMIT_S)
    way = ["git", "apply", "--verbose", "-"]
    done = await sandbox.exec(way, stdin=row.test_patch.encode(), timeout_s=APPLY_LIMIT_S)
    text = f"+ git apply --verbose test.patch\n{done.output.decode('utf-8', errors='replace')}"
    if done.exit_code != 0:
        last = text.strip().splitlines()[-1]
        raise EnvironmentFailed(f"{row.instance_id}: its test patch does not apply: {last}")
    return text
