"""Instances one after another or some at a time: environment, check, agent, grading; each instance's state is kept."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kcode.errors import Aborted, KcodeError, StartError
from kcode_bench.bug_run import Report
from kcode_bench.swe.agent import Agents, Terms
from kcode_bench.swe.environment import Environment, EnvironmentFailed, Kind, Place, build
from kcode_bench.swe.export import TRAJECTORY, transcript_of, write_trace
from kcode_bench.swe.gold import check_gold
from kcode_bench.swe.grading import Grade, grade
from kcode_bench.swe.page import TRACE
from kcode_bench.swe.results import Folder, Prediction, State
from kcode_bench.swe.rows import Row
from kcode_bench.swe.sources import Source
from kcode_bench.swe.specs import Spec, Specs
from kcode_bench.swe.tree import extract_patch
from kcode_bench.swe.trial import run_tests

log = logging.getLogger(__name__)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ground:
    """What every instance stands on. Environments are kept in `places`, beside any run, and used again."""

    source: Source
    specs: Specs
    kind: Kind
    places: Path
    test_limit_s: float
    check_gold: bool = True

    def place(self, row: Row) -> Place:
        return Place(self.places / self.kind / row.instance_id)


@dataclass(slots=True)
class Run:
    """One attempt at a command's instances, in `folder`. `terms` is None where patches are only graded."""

    ground: Ground
    folder: Folder
    name: str
    terms: Terms | None
    predictions: dict[str, Prediction]
    agents: Agents = field(default_factory=Agents)
    attempt: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work_of(self, row: Row) -> str:
        """What a state has to be about to count: the row, the patch or the agent's terms."""
        prediction = self.predictions.get(row.instance_id)
        what = asdict(self.terms) if self.terms is not None else (prediction.sha if prediction else "")
        return hashlib.sha256(json.dumps([row.model_dump(), self.ground.kind, what]).encode()).hexdigest()

    def same_terms(self) -> str:
        """What all attempts of a run have in common, shortened."""
        if self.terms is None:
            return ""
        words = json.dumps([self.terms.options, self.terms.time_limit_s])
        return hashlib.sha256(words.encode()).hexdigest()

    def is_finished(self, row: Row) -> bool:
        state = self.folder.state(row.instance_id)
        return state is not None and state.outcome != "error" and state.work == self.work_of(row)

    def do(self, row: Row) -> State:
        """One instance to its end; its state is written. Raises Aborted only."""
        started = time.monotonic()
        try:
            state = self._do(row)
        except Aborted:
            raise
        except KcodeError as error:
            reason = " ".join(str(error).split())
            invalid = isinstance(error, EnvironmentFailed)
            outcome = "environment_invalid" if invalid and not _in_passing(reason) else "error"
            state = State(instance_id=row.instance_id, work=self.work_of(row), outcome=outcome, reason=reason)
        except Exception as error:
            log.exception("%s: kcode itself failed; please report this", row.instance_id)
            reason = f"{type(error).__name__}: {error}"
            state = State(instance_id=row.instance_id, work=self.work_of(row), outcome="error", reason=reason)
        told = {"attempt": self.attempt, "seed": self.terms.seed if self.terms else None, "terms": self.same_terms()}
        state = state.model_copy(update={"seconds": round(time.monotonic() - started, 2), **told})
        self.folder.write_state(state)
        return state

    def _do(self, row: Row) -> State:
        ground, place, spec = self.ground, self.ground.place(row), self.ground.specs.of(row)
        if self.terms is None and not self.predictions[row.instance_id].model_patch:
            return State(
                instance_id=row.instance_id, work=self.work_of(row), outcome="done", reason="empty_patch", empty_patch=True
            )
        with place.held():
            environment = build(place, row, spec, ground.source, ground.kind)
            state = State(instance_id=row.instance_id, work=self.work_of(row), outcome="done", environment=environment.summary())
            if ground.check_gold:
                gold = check_gold(place, row, spec, environment, ground.test_limit_s)
                if gold.state != "valid":
                    return state.model_copy(update={"outcome": "environment_invalid", "reason": gold.reason})
            if self.terms is not None:
                report = self._solve(place, row, spec, self.terms)
                usage = {f"{name}_tokens": getattr(report.usage, name) for name in ("prompt", "cached", "completion")}
                state = state.model_copy(update={"agent_status": report.status, "turns": report.turns, **usage})
            patch = self.predictions[row.instance_id].model_patch or ""
            verdict = self._judge(place, row, spec, environment, patch)
        return state.model_copy(update={"resolved": verdict.resolved, "reason": verdict.reason, "empty_patch": not patch})

    def _solve(self, place: Place, row: Row, spec: Spec, terms: Terms) -> Report:
        """The agent's work, and its patch among the predictions."""
        folder = self.folder.instance(row.instance_id)
        place.renew()
        report = self.agents.work(terms, place, row, spec, self.ground.kind, folder)
        transcript = transcript_of(folder)
        if transcript is not None:
            write_trace(transcript, folder / TRAJECTORY, "atif")
            write_trace(transcript, folder / TRACE, "html")
        # Bytes that are no UTF-8 cannot stand in a prediction.
        patch = extract_patch(place, row.test_patch).decode("utf-8", errors="replace")
        with self.lock:
            self.predictions[row.instance_id] = Prediction(
                instance_id=row.instance_id, model_name_or_path=self.name, model_patch=patch
            )
            self.folder.write_predictions(self.predictions)
        return report

    def _judge(self, place: Place, row: Row, spec: Spec, environment: Environment, patch: str) -> Grade:
        folder = self.folder.instance(row.instance_id)
        (folder / "patch.diff").write_text(patch, encoding="utf-8", newline="")
        if not patch.strip():
            verdict = Grade(False, None, "empty_patch")
        else:
            tested = run_tests(place, row, spec, environment, patch.encode(), self.ground.test_limit_s)
            (folder / "test_output.txt").write_text(tested.text, encoding="utf-8")
            verdict = grade(row, spec.parser, tested)
        report = verdict.document(row.instance_id, patch_exists=bool(patch.strip()))
        (folder / "report.json").write_text(json.dumps(report, indent=4) + "\n", encoding="utf-8")
        return verdict


def _in_passing(reason: str) -> bool:
    """Whether an installation failed for something that may be gone at the next try."""
    return any(sign in reason for sign in ("Temporary failure", "Connection", "Read timed out", "was ended for time"))


def work_through(runs: Sequence[Run], rows: Sequence[Row], workers: int, say: Say) -> None:
    """All rows that are not finished yet in each of `runs`, `workers` at a time; a line for each.

    One attempt at every row comes before the next, since an instance's place is held by one at a time. Ctrl-C ends the agents and
    keeps what is done.
    """
    every = [(run, row) for run in runs for row in rows]
    waiting = [(run, row) for run, row in every if not run.is_finished(row)]
    if len(waiting) < len(every):
        say(f"{len(every) - len(waiting)} of {len(every)} were finished before")
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="swe") as pool:
        futures = {pool.submit(run.do, row): run.attempt for run, row in waiting}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                which = f" · attempt {futures[future]}" if len(runs) > 1 else ""
                left = (time.monotonic() - started) / number * (len(waiting) - number)
                rest = f" · about {left:.0f} s left" if left else ""
                say(f"{number}/{len(waiting)} {line_of(future.result())}{which}{rest}")
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for run in runs:
                run.agents.stop()
            raise Aborted("stopped; the same command goes on where it was") from None


def line_of(state: State) -> str:
    word = ("resolved" if state.resolved else "unresolved") if state.outcome == "done" else state.outcome
    reason = f": {state.reason}" if state.reason else ""
    return f"{state.instance_id} {word}{reason} ({state.seconds:.1f} s)"


def check_folder(path: Path) -> Folder:
    """Raises StartError when it is a file."""
    if path.exists() and not path.is_dir():
        raise StartError(f"--out {path}: it is not a folder")
    return Folder(path.resolve())
