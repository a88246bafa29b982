"""How well the sandbox holds, and what it costs. The last line is one JSON object.

attacks, succeeded: attacks tried behind the walls, and those that had their effect. must_work, failed: the same of legitimate
jobs.
shell_ms, oneshot_ms: what a command costs in the persistent shell and by itself beyond the same without walls. start_ms: a start
with its self-check, median. clone_ms: a copy-on-write clone of a workspace of
50,000 files and 1 GB, its sandbox started, median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from kcode_bench.attacks.attack import read_attacks
from kcode_bench.attacks.jobs import read_jobs, work
from kcode_bench.attacks.run import walled
from kcode_sandbox.client import WorkerSandbox
from kcode_sandbox.clone import open_clone
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.environment import clean_environment
from kcode_sandbox.policy import Policy

ROUNDS = 40
CLONED_FILES = 50_000
CLONED_BYTES = 1_000_000_000
COMMAND_TIMEOUT_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when no attack succeeded and no job failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--costs-only", action="store_true", help="measure the costs, try no attacks and no jobs")
    chosen = parser.parse_args(arguments)
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="kcode-bench-") as folder:
        if not chosen.costs_only:
            result |= asyncio.run(_trials(Path(folder)))
        workspace = Path(folder).resolve() / "costs"
        workspace.mkdir()
        result |= asyncio.run(_costs(workspace))
    print(json.dumps(result))
    return 1 if result.get("succeeded") or result.get("failed") else 0


async def _trials(folder: Path) -> dict[str, object]:
    attacks, jobs = read_attacks(), [job for job in read_jobs() if job.possible]
    succeeded = failed = 0
    for number, attack in enumerate(attacks):
        trial = await walled(attack, folder / f"attack-{number}")
        succeeded += trial.succeeded
        if trial.succeeded:
            print(f"succeeded: {attack.id}: {trial.output.strip()[-200:]}", file=sys.stderr)
    for number, job in enumerate(jobs):
        trial = await work(job, folder / f"job-{number}")
        failed += not trial.succeeded
        if not trial.succeeded:
            print(f"failed: {job.name}: {trial.output.strip()[-200:]}", file=sys.stderr)
    return {"attacks": len(attacks), "succeeded": succeeded, "must_work": len(jobs), "failed": failed}


async def _costs(workspace: Path) -> dict[str, object]:
    policy = Policy(workspace, environment=tuple(sorted(clean_environment(os.environ).items())))
    starts: list[float] = []
    for _ in range(5):
        begun = time.perf_counter()
        sandbox = open_sandbox(policy)
        await sandbox.start()
        starts.append(time.perf_counter() - begun)
        await sandbox.close()
    sandbox = open_sandbox(policy)
    await sandbox.start()
    try:
        shell_s, plain_shell_s = await _shell(sandbox)
        oneshot_s, plain_oneshot_s = await _oneshot(sandbox)
    finally:
        await sandbox.close()
    return {
        "shell_ms": round(1000 * (shell_s - plain_shell_s), 2),
        "oneshot_ms": round(1000 * (oneshot_s - plain_oneshot_s), 2),
        "start_ms": round(1000 * median(starts), 1),
        "clone_ms": round(1000 * await _clone(workspace.with_name("large"), workspace.with_name("clones")), 1),
    }


def _fill(folder: Path) -> None:
    """Files without allocated blocks: an overlay reads names, never contents."""
    for number in range(CLONED_FILES):
        place = folder / f"f{number // 100}"
        if number % 100 == 0:
            place.mkdir(parents=True)
        with (place / f"{number}.txt").open("wb") as file:
            file.truncate(CLONED_BYTES // CLONED_FILES)


async def _clone(workspace: Path, store: Path) -> float:
    await asyncio.to_thread(_fill, workspace)
    policy = Policy(workspace, environment=tuple(sorted(clean_environment(os.environ).items())))
    taken: list[float] = []
    for _ in range(5):
        begun = time.perf_counter()
        clone = await open_clone(policy, store)
        await clone.sandbox.start()
        taken.append(time.perf_counter() - begun)
        await clone.discard()
    return median(taken)


class PlainShell:
    """A bash without walls, fed by a pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def run(self, command: str) -> None:
        self._stdin.write(f"{command}; echo\n".encode())
        self._stdin.flush()
        self._stdout.readline()

    def close(self) -> None:
        self._process.communicate()


def run_plainly(argv: Sequence[str]) -> None:
    subprocess.run(argv, check=True)


async def _shell(sandbox: WorkerSandbox) -> tuple[float, float]:
    """Medians of a program run in the sandbox's shell and in a plain bash fed by a pipe, taken in turns."""
    shell = await sandbox.shell()
    plain = PlainShell()
    inside: list[float] = []
    outside: list[float] = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        await shell.run("/bin/true", COMMAND_TIMEOUT_S)
        inside.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        plain.run("/bin/true")
        outside.append(time.perf_counter() - begun)
    plain.close()
    return median(inside), median(outside)


async def _oneshot(sandbox: WorkerSandbox) -> tuple[float, float]:
    inside: list[float] = []
    outside: list[float] = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        await sandbox.exec(["bash", "-c", "/bin/true"], timeout_s=COMMAND_TIMEOUT_S)
        inside.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        run_plainly(["bash", "-c", "/bin/true"])
        outside.append(time.perf_counter() - begun)
    return median(inside), median(outside)


if __name__ == "__main__":
    sys.exit(main())
