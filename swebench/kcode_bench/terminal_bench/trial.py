"""One attempt at one task: the folders, the agent (or the solution, or nothing), the tests; results in Harbor's form."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import kcode
from kcode.errors import KcodeError, StartError
from kcode.export import write_export
from kcode.transcript import active_records, read_records
from kcode_bench.bug_run import GRACE_S, SCORED_EXIT_CODES, START_EXIT_CODE, Report, end_group, last_line, read_report
from kcode_bench.swe.environment import write_whole
from kcode_bench.terminal_bench.grading import RewardMissing, VerifierTimeout, verify
from kcode_bench.terminal_bench.task import Task, read_task
from kcode_bench.terminal_bench.view import Box
from kcode_bench.terminal_bench.world import World, build, lay_stand_ins

AgentName = Literal["kcode", "oracle", "nop"]
"""kcode itself; the task's own solution; nobody."""
ENVIRONMENT = "kcode_bench.harbor.environment:BwrapEnvironment"


class AgentFailed(KcodeError):
    """The agent gave no answer that counts. `kind` is Harbor's name for it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Terms:
    """`options` are further words of kcode's command line; a limit of None is the task's own."""

    agent: AgentName
    model: str
    options: tuple[str, ...]
    time_limit_s: float | None
    timeout_multiplier: float
    network: str

    def agent_limit_s(self, task: Task) -> float:
        return self.time_limit_s or task.agent_timeout_s * self.timeout_multiplier


@dataclass(frozen=True, slots=True)
class Trial:
    """`folder` is that of its results."""

    task: Path
    folder: Path
    terms: Terms

    @property
    def work(self) -> str:
        """What a result has to be about to count when a run goes on."""
        terms = self.terms
        about = [checksum(self.task), terms.agent, terms.model, terms.options, terms.time_limit_s, terms.timeout_multiplier]
        return hashlib.sha256(json.dumps([*about, terms.network]).encode()).hexdigest()


@dataclass(slots=True)
class Record:
    """What is known of a trial while it runs; `document` is Harbor's TrialResult."""

    trial: Trial
    started: str = field(default_factory=lambda: _now())
    times: dict[str, dict[str, str]] = field(default_factory=dict)
    rewards: dict[str, float] | None = None
    report: Report | None = None
    error: tuple[str, str] | None = None

    def begin(self, phase: str) -> None:
        self.times[phase] = {"started_at": _now()}

    def end(self, phase: str) -> None:
        self.times[phase]["finished_at"] = _now()

    def document(self) -> dict[str, object]:
        trial, report = self.trial, self.report
        agent: dict[str, object] = {"name": trial.terms.agent, "model_name": trial.terms.model or None}
        config = {
            "task": {"path": str(trial.task)},
            "trial_name": trial.folder.name,
            "trials_dir": str(trial.folder.parent),
            "timeout_multiplier": trial.terms.timeout_multiplier,
            "agent": agent,
            "environment": {"import_path": ENVIRONMENT},
        }
        info: dict[str, object] = {"name": trial.terms.agent, "version": kcode.__version__}
        model = (report.model if report else None) or trial.terms.model
        if model:
            info["model_info"] = {"name": model}
        result: dict[str, object] = {"metadata": {"status": report.status, "turns": report.turns}} if report else {}
        if report is not None:
            usage = report.usage
            result |= {"n_input_tokens": usage.prompt, "n_cache_tokens": usage.cached, "n_output_tokens": usage.completion}
        failed = None
        if self.error is not None:
            failed = {"exception_type": self.error[0], "exception_message": self.error[1], "exception_traceback": ""}
            failed["occurred_at"] = _now()
        return {
            "id": str(uuid.uuid4()),
            "task_name": trial.task.name,
            "trial_name": trial.folder.name,
            "trial_uri": trial.folder.as_uri(),
            "task_id": {"path": str(trial.task)},
            "source": None,
            "task_checksum": checksum(trial.task),
            "config": config,
            "agent_info": info,
            "agent_result": result if report is not None else None,
            "verifier_result": None if self.rewards is None else {"rewards": self.rewards},
            "exception_info": failed,
            "started_at": self.started,
            "finished_at": _now(),
            **self.times,
            "kcode": {"work": trial.work, "network": trial.terms.network, "notes": list(read_task(trial.task).plan.notes)},
        }


# Ends that are answers: they are not tried again when a run goes on.
FINAL = {"AgentTimeoutError", "VerifierTimeoutError", "RewardFileNotFoundError", "RewardFileEmptyError"} | {
    "VerifierOutputParseError"
}


def finished(trial: Trial) -> dict[str, object] | None:
    """The result of an earlier run of the same trial, None when there is none or it was an error."""
    try:
        document = json.loads((trial.folder / "result.json").read_bytes())
        failed, work = document["exception_info"], document["kcode"]["work"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    final = failed is None or failed["exception_type"] in FINAL
    return document if final and work == trial.work else None


def run_trial(trial: Trial) -> dict[str, object]:
    """To its end; the result is written. Raises StartError when kcode could not start at all."""
    shutil.rmtree(trial.folder, ignore_errors=True)
    for name in ("agent", "verifier", "artifacts"):
        (trial.folder / name).mkdir(parents=True)
    record = Record(trial)
    try:
        asyncio.run(_run(record, read_task(trial.task)))
    except StartError:
        raise
    except (AgentFailed, RewardMissing) as error:
        record.error = (error.kind, _line(error))
    except VerifierTimeout as error:
        record.error = ("VerifierTimeoutError", _line(error))
    except KcodeError as error:
        record.error = (type(error).__name__, _line(error))
    if record.error is not None:
        (trial.folder / "exception.txt").write_text(f"{record.error[0]}: {record.error[1]}\n", encoding="utf-8")
    document = record.document()
    write_whole(trial.folder / "config.json", json.dumps(document["config"], indent=2) + "\n")
    write_whole(trial.folder / "result.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return document


async def _run(record: Record, task: Task) -> None:
    """An agent that ran out of time is graded nevertheless."""
    terms, folder = record.trial.terms, record.trial.folder
    with tempfile.TemporaryDirectory(prefix="kcode-tb-", ignore_cleanup_errors=True) as place:
        world = _new_world(place, task)
        record.begin("environment_setup")
        await build(world)
        record.end("environment_setup")
        record.begin("agent_execution")
        late: AgentFailed | None = None
        try:
            if terms.agent == "kcode":
                record.report = await asyncio.to_thread(_agent, world, task, terms, folder)
            elif terms.agent == "oracle":
                await _oracle(world, task, terms, folder)
        except AgentFailed as error:
            if error.kind != "AgentTimeoutError":
                raise
            late = error
        record.end("agent_execution")
        record.begin("verifier")
        limit_s = task.verifier_timeout_s * terms.timeout_multiplier
        record.rewards = await verify(task, world, folder / "verifier", terms.network, limit_s)
        record.end("verifier")
        if late is not None:
            raise late


def _new_world(place: str, task: Task) -> World:
    folder = Path(place).resolve()
    return World(folder / "world", task.plan, lay_stand_ins(folder / "tools"))


async def _oracle(world: World, task: Task, terms: Terms, folder: Path) -> None:
    if task.solution is None:
        raise AgentFailed("NoSolution", f"{task.name}: it has no solution to run")
    copied = shutil.copytree(task.solution.parent, world.folder / "solution") if task.layout == "harbor" else None
    if copied is None:
        copied = world.folder / "solution"
        copied.mkdir()
        shutil.copy(task.solution, copied)
    limit_s = terms.agent_limit_s(task)
    walls = world.walls(("/solution",), terms.network, dict(task.solution_environment))
    async with Box(world.view({"solution": copied}), walls) as box:
        command = ["bash", f"/solution/{task.solution.name}"]
        done = await box.exec(command, timeout_s=limit_s, cwd=task.plan.workdir, mixed=True)
    shutil.rmtree(copied)
    (folder / "agent" / "oracle.txt").write_bytes(done.stdout)
    if done.exit_code is None:
        raise AgentFailed("AgentTimeoutError", f"the solution did not end within {limit_s:g} s")


def _agent(world: World, task: Task, terms: Terms, trial: Path) -> Report:
    """kcode as a process of its own, in the view and, as always, in its own sandbox there. Blocks."""
    folder, limit_s = trial / "agent", terms.agent_limit_s(task)
    prompt = folder / "instruction.md"
    prompt.write_text(task.instruction, encoding="utf-8")
    argv = [
        *(sys.executable, "-m", "kcode", "--prompt-file", str(prompt), "--output-format", "json", "--cd", task.plan.workdir),
        *("--output-dir", str(folder / "session"), "--time-limit", f"{limit_s:g}", "--approval-mode", "auto"),
        *("--sandbox", "workspace-write", "--sandbox-backend", "bubblewrap", "--network", terms.network),
        *(word for path in world.beside for word in ("--add-dir", path)),
        *terms.options,
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ("KCODE_ADD_DIR", "KCODE_READ_DIR")}
    environment |= dict(task.plan.environment)
    exit_code = _wait(world.view().wrap(argv), environment, limit_s + GRACE_S, folder)
    transcript = folder / "session" / "transcript.jsonl"
    if transcript.is_file():
        write_export(active_records(read_records(transcript)), folder / "trajectory.json", "atif")
    said = last_line(folder / "kcode.log") or f"see {folder}/kcode.log"
    if exit_code == START_EXIT_CODE:
        raise StartError(f"kcode could not start: {said}")
    report = read_report(folder)
    if exit_code is None or (report is not None and report.status == "limit" and "--time-limit" in (report.reason or "")):
        raise AgentFailed("AgentTimeoutError", f"the agent did not end within {limit_s:g} s")
    if report is None or exit_code not in SCORED_EXIT_CODES:
        raise AgentFailed("AgentFailed", f"kcode ended with {exit_code}: {(report.reason if report else None) or said}")
    return report


def _wait(argv: list[str], environment: dict[str, str], limit_s: float, folder: Path) -> int | None:
    """The exit code, None when it had to be killed."""
    with (folder / "kcode.json").open("wb") as stdout, (folder / "kcode.log").open("wb") as stderr:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, cwd="/", start_new_session=True
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_group(process)


def checksum(task: Path) -> str:
    """Of names and contents of all its files."""
    found = hashlib.sha256()
    for file in sorted(path for path in task.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        found.update(f"{file.relative_to(task)}\0{file.stat().st_size}\0".encode())
        found.update(file.read_bytes())
    return found.hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
