"""`python -m kcode_bench.bug_peer`: mini-swe-agent on the development set of one-file bugs, with the model that kcode has.

The model is served by kcode's engine. The peer gets the task, the repository, the time and the judge that kcode gets, and as
many whole attempts, each in a fresh repository, up to the first whose tests pass. Its commands run behind its own bubblewrap.
Attempts are made in rounds, so that a run that is broken off has made the same number of them for every bug. The last line of
stdout is one JSON object; a run is resumed by starting it again with the same --out.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click
import httpx
from pydantic import BaseModel, Field, ValidationError

from kcode.errors import KcodeError, StartError
from kcode_bench.bug_report import append_result, read_results, table, totals_line
from kcode_bench.bug_run import GRACE_S, Result, end_group, judge, last_line, task_text
from kcode_bench.bug_set import Bug, load, read_manifest, write_repository
from kcode_bench.small_bugs import commit_name, progress_line, say, select
from kcode_sandbox.detect import usable_binaries

NAME = "mini-swe-agent"
START_LIMIT_S = 300.0
SERVED_AS = "served"
# A server that is computing may take its time to say that it is there.
ALIVE_LIMIT_S = 30.0
LATE = "no answer within the time limit"
TEXT_CONFIG = "mini_textbased.yaml"
"""The peer's way with models that make no tool calls: commands are read out of fenced blocks."""


@dataclass(frozen=True, slots=True)
class Peer:
    """`program` is its command `mini`, `config` one of the configurations it brings."""

    program: Path
    config: str
    base_url: str
    bubblewrap: str
    time_limit_s: float


class PeerUsage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class PeerResponse(BaseModel):
    usage: PeerUsage = Field(default_factory=PeerUsage)


class PeerExtra(BaseModel):
    response: PeerResponse | None = None


class PeerMessage(BaseModel):
    extra: PeerExtra = Field(default_factory=PeerExtra)


class PeerInfo(BaseModel):
    exit_status: str = ""
    mini_version: str = "?"


class Trajectory(BaseModel):
    """What is read of the file that the peer writes after each step."""

    info: PeerInfo = Field(default_factory=PeerInfo)
    messages: tuple[PeerMessage, ...] = ()

    @property
    def answers(self) -> list[PeerUsage]:
        return [message.extra.response.usage for message in self.messages if message.extra.response]


def read_trajectory(path: Path) -> Trajectory:
    try:
        return Trajectory.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return Trajectory()


def command_line(peer: Peer, bug: Bug, repository: Path, trajectory: Path) -> list[str]:
    """Of one attempt: without questions, with the time limit as its own."""
    values = {
        "agent.wall_time_limit_seconds": f"{peer.time_limit_s:.0f}",
        "environment.cwd": str(repository),
        "environment.executable": peer.bubblewrap,
        "model.model_kwargs.api_base": peer.base_url,
        "model.model_kwargs.api_key": "none",
    }
    chosen = [word for key, value in values.items() for word in ("-c", f"{key}={value}")]
    classes = ["--agent-class", "default", "--environment-class", "bubblewrap", "-m", f"openai/{SERVED_AS}"]
    if peer.config == TEXT_CONFIG:
        classes += ["--model-class", "litellm_textbased"]
    return [
        *(str(peer.program), "-c", peer.config, *chosen, *classes, "-y", "-l", "0", "--exit-immediately"),
        *("-o", str(trajectory), "-t", task_text(bug)),
    ]


def run_peer(peer: Peer, argv: list[str], folder: Path) -> int:
    """Exit code, -1 when it had to be killed; what it prints goes to `folder`."""
    own = {
        "HOME": str(folder),
        "MSWEA_CONFIGURED": "true",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "MSWEA_GLOBAL_CONFIG_DIR": str(folder / "config"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    with (folder / "mini.log").open("wb") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **own}
        )
        try:
            return process.wait(peer.time_limit_s + GRACE_S)
        except subprocess.TimeoutExpired:
            return -1
        finally:
            end_group(process)


def attempt(bug: Bug, peer: Peer, number: int, before: Result | None, out: Path, commit: str) -> Result:
    """One more attempt at a bug; times and tokens are those of all attempts so far."""
    folder = out / bug.entry.id / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kcode-bug-", ignore_cleanup_errors=True) as place:
        repository = Path(place, bug.problem.entry_point)
        write_repository(repository, bug)
        started = time.monotonic()
        exit_code = run_peer(peer, command_line(peer, bug, repository, folder / "trajectory.json"), folder)
        seconds = time.monotonic() - started
        tests = judge(bug, repository)
    trajectory = read_trajectory(folder / "trajectory.json")
    answers = trajectory.answers
    # A peer that cannot reach the model also waits until its time is over: only a server that is there makes it slow.
    is_late = (exit_code == -1 or seconds >= peer.time_limit_s) and _answers(f"{peer.base_url}/models", ALIVE_LIMIT_S)
    return Result(
        id=bug.entry.id,
        split=bug.entry.split,
        kind=bug.entry.kind,
        outcome="done" if answers or is_late else "error",
        resolved=bool(answers) and tests.ok,
        status=LATE if is_late and not answers else trajectory.info.exit_status or ("killed" if exit_code == -1 else "no report"),
        exit_code=exit_code,
        attempts=number,
        seconds=round(seconds + (before.seconds if before else 0), 2),
        turns=len(answers) + (before.turns if before else 0),
        prompt_tokens=sum(usage.prompt_tokens for usage in answers) + (before.prompt_tokens if before else 0),
        cached_tokens=0,
        completion_tokens=sum(usage.completion_tokens for usage in answers) + (before.completion_tokens if before else 0),
        tests_failed=tests.failed,
        tests=tests.expected,
        model=f"{NAME} {trajectory.info.mini_version} ({peer.config})",
        requested_model=NAME,
        commit=commit,
        reason=last_line(folder / "mini.log"),
    )


def run_rounds(bugs: Sequence[Bug], peer: Peer, rounds: int, out: Path) -> list[Result]:
    """Results on disk after each attempt; one without an answer within its time has failed.

    Raises StartError when an attempt ended without an answer for another reason: no model can be reached.
    """
    out.mkdir(parents=True, exist_ok=True)
    results = read_results(out)
    commit = commit_name()
    for number in range(1, rounds + 1):
        for place, bug in enumerate(bugs, 1):
            before = results.get(bug.entry.id)
            if before is not None and (before.resolved or before.attempts >= number):
                continue
            result = attempt(bug, peer, number, before, out, commit)
            if result.outcome == "error":
                where = out / bug.entry.id / str(number) / "mini.log"
                raise StartError(f"{NAME} ended without an answer of the model: {result.reason or where}; see {where}")
            append_result(out, result)
            results[bug.entry.id] = result
            say(progress_line(place, len(bugs), result, list(results.values())))
    return [results[bug.entry.id] for bug in bugs]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(model: str, folder: Path) -> Generator[str]:
    """The address under which kcode serves the model while the block runs. Raises StartError."""
    port = free_port()
    argv = [sys.executable, "-m", "kcode", "serve", model, "--port", str(port), "--name", SERVED_AS, "--shutdown-timeout", "1"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + START_LIMIT_S
            while not _answers(f"http://127.0.0.1:{port}/v1/models"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StartError(f"kcode serve {model} did not start: {last_line(folder / 'serve.log')}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            end_group(process)


def _answers(url: str, timeout_s: float = 5.0) -> bool:
    try:
        return httpx.get(url, timeout=timeout_s).is_success
    except httpx.HTTPError:
        return False


def find_program(python: Path) -> Path:
    program = python.with_name("mini")
    if not program.is_file():
        raise StartError(f"{NAME} is not installed beside {python}; make bench-mini installs it into a folder of its own")
    return program


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--python", type=click.Path(path_type=Path), required=True, help="The interpreter that has mini-swe-agent.")
@click.option("--model", "-m", required=True, help="Served by kcode: a catalogue name or a file.")
@click.option("--split", type=click.Choice(["tune", "held", "all"]), default="held", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="At most this many bugs.")
@click.option("--ids", help="These bugs instead of a split, separated by commas.")
@click.option("--attempts", type=click.IntRange(min=1), default=3, show_default=True, help="Whole attempts per bug.")
@click.option("--time-limit", type=click.FloatRange(min=1), default=300.0, show_default=True, help="Seconds per attempt.")
@click.option(
    "--config", default="mini.yaml", show_default=True, help=f"One of the peer's configurations, such as {TEXT_CONFIG}."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out", "mini-swe-agent"), show_default=True)
def main(
    python: Path,
    model: str,
    split: str,
    limit: int | None,
    ids: str | None,
    attempts: int,
    time_limit: float,
    config: str,
    out: Path,
) -> None:
    """Run mini-swe-agent on small repositories that each have one bug, and count what it fixes."""
    try:
        binaries = usable_binaries()
        if not binaries:
            raise StartError(
                "no bubblewrap works here, and without it the peer's commands would run unconfined; see kcode doctor"
            )
        bugs = [load(entry) for entry in select(read_manifest(), split, ids, limit)]
        program = find_program(python.absolute())
        out = out.absolute()
        with served(model, out) as base_url:
            peer = Peer(program, config, base_url, str(binaries[0].path), time_limit)
            results = run_rounds(bugs, peer, attempts, out)
        say(table(results))
        click.echo(totals_line([replace(result, model=f"{result.model} on {Path(model).name}") for result in results]))
    except KcodeError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
