"""`kcode terminal-bench`: kcode on task folders of Terminal-Bench and Harbor, in kcode's own sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

import click

from kcode.errors import Aborted, StartError
from kcode_bench.executor import Executor, executor_named
from kcode_bench.options import with_options
from kcode_bench.swe.environment import write_whole
from kcode_bench.terminal_bench.results import job_result, reward_of, summary, told
from kcode_bench.terminal_bench.task import Task, find_tasks, read_task
from kcode_bench.terminal_bench.trial import AgentName, Terms, Trial, finished, run_trial

_CHOICE = (
    click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH..."),
    click.option("--ids", multiple=True, metavar="GLOB", help="Only tasks of these names; may be given several times."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Not these."),
    click.option("--filter", "pattern", default="", metavar="REGEX", help="Only names in which it is found."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Of what is left, the first N."),
    click.option("--jobs-dir", type=click.Path(path_type=Path), default=Path("jobs"), show_default=True, metavar="DIR"),
    click.option("--job-name", default="", metavar="NAME", help="A job of the same name goes on where it was."),
    click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Trials at a time."),
    click.option("--executor", default="local", show_default=True, metavar="local|ray[:ADDRESS]"),
    click.option("--network", type=click.Choice(["off", "on"]), default="off", show_default=True, help="For agent and tests."),
    click.option("--timeout-multiplier", type=click.FloatRange(min=0.01), default=1.0, show_default=True),
    click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line."),
)


@dataclass(frozen=True, slots=True)
class Job:
    """The chosen tasks, those that can be run here, and where results go."""

    tasks: tuple[Task, ...]
    folder: Path
    executor: Executor

    @property
    def runnable(self) -> tuple[Task, ...]:
        return tuple(task for task in self.tasks if not task.obstacles)


@click.group()
def command() -> None:
    """Tasks of Terminal-Bench (task.yaml) and Harbor (task.toml): check them, let kcode work on them."""


@command.command("check")
@with_options(_CHOICE)
def check_command(
    paths: tuple[Path, ...],
    ids: tuple[str, ...],
    exclude: tuple[str, ...],
    pattern: str,
    limit: int | None,
    jobs_dir: Path,
    job_name: str,
    workers: int,
    executor: str,
    network: str,
    timeout_multiplier: float,
    as_json: bool,
) -> int:
    """Say of each task whether it can be run and graded here: its solution passes its tests, and doing nothing fails them.

    Ends with 0 when all can.
    """
    job = _job(_chosen(paths, ids, exclude, pattern, limit), jobs_dir, job_name or "check", workers, executor)
    agents: tuple[AgentName, ...] = ("oracle", "nop")
    trials = [
        Trial(task.folder, job.folder / f"{task.name}__{agent}", Terms(agent, "", (), None, timeout_multiplier, network))
        for task in job.runnable
        for agent in agents
    ]
    results = _work(job, trials)
    found = {task.name: _verdict(task, job.folder, results) for task in job.tasks}
    counts = {state: sum(item["state"] == state for item in found.values()) for state in ("valid", "invalid", "not_runnable")}
    for name, item in found.items():
        click.echo(f"{name} {item['state']}" + (f": {item['reason']}" if item["reason"] else ""), err=True)
    if as_json:
        click.echo(json.dumps({"command": "check", "total": len(found), **counts, "tasks": found}, ensure_ascii=False))
    else:
        click.echo(", ".join(f"{number} {name}" for name, number in counts.items()))
    return 0 if counts["valid"] == len(found) else 3


def _verdict(task: Task, folder: Path, results: dict[str, dict[str, object]]) -> dict[str, object]:
    if task.obstacles:
        return {"state": "not_runnable", "reason": "; ".join(task.obstacles), "obstacles": list(task.obstacles)}
    solved, untouched = (results[f"{task.name}__{agent}"] for agent in ("oracle", "nop"))
    reason = ""
    if reward_of(solved) != 1.0:
        reason = f"its solution does not pass ({told(solved)}); see {folder}/{task.name}__oracle/verifier/test-stdout.txt"
    elif reward_of(untouched) == 1.0:
        reason = "its tests pass although nothing was done"
    return {"state": "invalid" if reason else "valid", "reason": reason, "notes": list(task.plan.notes)}


@command.command("run")
@with_options(_CHOICE)
@click.option("-m", "--model", metavar="NAME", help="As for kcode itself.")
@click.option("--base-url", metavar="URL", help="As for kcode itself.")
@click.option("--profile", metavar="NAME", help="As for kcode itself.")
@click.option("--seed", type=int, metavar="N", help="Of the sampler.")
@click.option("--max-turns", type=click.IntRange(min=1), metavar="N", help="Model calls per trial.")
@click.option("--time-limit", type=click.FloatRange(min=1), metavar="S", help="Per trial, instead of the task's own.")
@click.option("-k", "--attempts", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N", help="Per task.")
def run_command(
    paths: tuple[Path, ...],
    ids: tuple[str, ...],
    exclude: tuple[str, ...],
    pattern: str,
    limit: int | None,
    jobs_dir: Path,
    job_name: str,
    workers: int,
    executor: str,
    network: str,
    timeout_multiplier: float,
    as_json: bool,
    model: str | None,
    base_url: str | None,
    profile: str | None,
    seed: int | None,
    max_turns: int | None,
    time_limit: float | None,
    attempts: int,
) -> int:
    """Let kcode work on each task and run the task's tests over what it leaves. Finished trials are not repeated, errors are.

    Ends with 0 when nothing went wrong, resolved or not.
    """
    name = job_name or f"{datetime.now(UTC):%Y-%m-%d__%H-%M-%S}"
    job = _job(_chosen(paths, ids, exclude, pattern, limit), jobs_dir, name, workers, executor)
    given = {"--model": model, "--base-url": base_url, "--profile": profile, "--seed": seed, "--max-turns": max_turns}
    options = tuple(word for flag, value in given.items() if value is not None for word in (flag, str(value)))
    terms = Terms("kcode", model or "", options, time_limit, timeout_multiplier, network)
    trials = [
        Trial(task.folder, job.folder / f"{task.name}__{number}", terms)
        for task in job.runnable
        for number in range(1, attempts + 1)
    ]
    for task in job.tasks:
        if task.obstacles:
            click.echo(f"{task.name} not_runnable: {'; '.join(task.obstacles)}", err=True)
    started = datetime.now(UTC).isoformat()
    results = _work(job, trials)
    document = summary(job.tasks, results) | {"out": str(job.folder)}
    write_whole(job.folder / "result.json", json.dumps(job_result(list(results.values()), started), indent=2) + "\n")
    write_whole(job.folder / "summary.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        click.echo(json.dumps({"command": "run", **document}, ensure_ascii=False))
    else:
        click.echo(
            f"{document['resolved']} resolved of {document['trials']} trials of {len(job.runnable)} tasks "
            f"({document['not_runnable']} tasks cannot be run here, {document['errors']} errors). "
            "This is no score of Terminal-Bench: run its tasks in their images through Harbor for one."
        )
    return 2 if document["errors"] else 0


def _work(job: Job, trials: Sequence[Trial]) -> dict[str, dict[str, object]]:
    """All results by the name of the trial, in order; a line for each on standard error."""
    before = {trial.folder.name: finished(trial) for trial in trials}
    waiting = [trial for trial in trials if before[trial.folder.name] is None]
    if len(waiting) < len(trials):
        click.echo(f"{len(trials) - len(waiting)} of {len(trials)} were finished before", err=True)
    found = {name: result for name, result in before.items() if result is not None}
    try:
        for number, result in enumerate(job.executor.run(run_trial, waiting), 1):
            found[str(result["trial_name"])] = result
            click.echo(f"{number}/{len(waiting)} {result['trial_name']} {told(result)}", err=True)
    except KeyboardInterrupt:
        raise Aborted("stopped; the same command with the same --job-name goes on where it was") from None
    return {trial.folder.name: found[trial.folder.name] for trial in trials}


def _chosen(
    paths: tuple[Path, ...], ids: tuple[str, ...], exclude: tuple[str, ...], pattern: str, limit: int | None
) -> tuple[Task, ...]:
    wanted = tuple(name for given in ids for name in given.replace(",", " ").split())
    try:
        searched = re.compile(pattern)
    except re.error as error:
        raise StartError(f"--filter {pattern}: {error}") from error
    folders = [
        folder
        for folder in find_tasks(paths)
        if (not wanted or any(fnmatch(folder.name, name) for name in wanted))
        and not any(fnmatch(folder.name, name) for name in exclude)
        and searched.search(folder.name)
    ]
    if not folders:
        raise StartError(f"no task is left of {', '.join(map(str, paths))} by --ids, --exclude and --filter")
    names = [folder.name for folder in folders]
    if twice := {name for name in names if names.count(name) > 1}:
        raise StartError(f"two tasks are called {min(twice)}; give the folders in two runs")
    return tuple(read_task(folder) for folder in folders[:limit])


def _job(tasks: tuple[Task, ...], jobs_dir: Path, name: str, workers: int, executor: str) -> Job:
    folder = (jobs_dir / name).resolve()
    if folder.exists() and not folder.is_dir():
        raise StartError(f"--jobs-dir {jobs_dir}: {folder} is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return Job(tasks, folder, executor_named(executor, workers))
