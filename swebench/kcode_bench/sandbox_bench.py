"""How well the sandbox holds, and what it costs. The last line is one JSON object.

attacks, succeeded: attacks tried behind bubblewrap's walls by this user and, where this is root, by an ordinary one, and those
that had their effect. must_work, failed: the same of legitimate jobs. landlock: the same on the fallback without what its tables
say it leaves open, which residue counts.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from kcode_bench.sandbox_trials import command, run_as_ordinary
from kcode_sandbox.client import WorkerSandbox
from kcode_sandbox.clone import open_clone
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.environment import clean_environment
from kcode_sandbox.policy import Choice, Policy

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
            os.chmod(folder, 0o755)
            result |= _trials(Path(folder))
        workspace = Path(folder).resolve() / "costs"
        workspace.mkdir()
        result |= asyncio.run(_costs(workspace))
    print(json.dumps(result))
    runs = (result, result.get("landlock", {}))
    return 1 if any(run.get("succeeded") or run.get("failed") for run in runs if isinstance(run, dict)) else 0


def _trials(folder: Path) -> dict[str, object]:
    """Both backends, each by this user and, where this is root, by an ordinary one; two runs at a time."""
    backends: tuple[Choice, ...] = ("auto", "landlock")
    runs = [(backend, by_other) for by_other in ((False, True) if os.getuid() == 0 else (False,)) for backend in backends]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda run: _trial(run[0], folder if run[1] else None), runs))
    counts = [_counted([trials for trials in found if trials.get("backend") == backend]) for backend in backends]
    walls, landlock = counts
    document: dict[str, object] = {name: walls[name] for name in walls if name != "residue"}
    return document | {"landlock": landlock}


def _trial(backend: Choice, folder: Path | None) -> dict[str, object]:
    """The document of sandbox_trials; with `folder` by an ordinary user."""
    if folder is None:
        done = subprocess.run(command(backend), capture_output=True, text=True, check=False)
    else:
        try:
            done = run_as_ordinary(backend, folder / f"ordinary-{backend}")
        except LookupError as error:
            print(f"not tried as an ordinary user: {error}", file=sys.stderr)
            return {}
    sys.stderr.write(done.stderr)
    if not done.stdout.strip():
        raise RuntimeError(f"the trials on {backend} ended with {done.returncode} and said nothing")
    return json.loads(done.stdout.splitlines()[-1])


def _counted(runs: Sequence[dict[str, object]]) -> dict[str, int]:
    """Numbers of all `runs` together."""
    names = ("attacks", "succeeded", "must_work", "failed", "residue")
    return {name: sum(_number(run[name]) for run in runs) for name in names}


def _number(value: object) -> int:
    return value if isinstance(value, int) else len(value) if isinstance(value, list) else 0


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
