"""The files of a run: a folder per instance, the predictions, and the reports over all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from kcode.errors import StartError
from kcode_bench.swe.environment import write_whole
from kcode_bench.swe.grading import APPLY_FAILED, TIMED_OUT, classify
from kcode_bench.swe.measures import Share, pass_at, share

Outcome = Literal["done", "error", "environment_invalid"]
FURTHER = "attempts"
"""Where the attempts after the first are kept, each as a run of its own."""


class Prediction(BaseModel):
    """In the form that every tool around SWE-bench reads. None and "" are the same: an empty patch."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    instance_id: str
    model_name_or_path: str = "unknown"
    model_patch: str | None = None

    @property
    def sha(self) -> str:
        return hashlib.sha256((self.model_patch or "").encode()).hexdigest()


class State(BaseModel):
    """Where an instance stands. "done" and "environment_invalid" are final, an "error" is tried again by the next run.

    `work` names what was done: a state counts only for the same work, so that a new patch is graded anew.
    """

    model_config = ConfigDict(frozen=True)

    instance_id: str
    work: str
    outcome: Outcome
    resolved: bool = False
    reason: str = ""
    agent_status: str = ""
    empty_patch: bool = False
    seconds: float = 0.0
    own_seconds: float = 0.0
    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    environment: dict[str, object] = {}
    attempt: int = 1
    seed: int | None = None
    terms: str = ""
    """What the agent was given, without the seed: attempts at an instance count together only where it is the same."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Of one run, or of one further attempt in it. `path` is made when something is written."""

    path: Path

    def instance(self, instance_id: str) -> Path:
        folder = self.path / instance_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def state(self, instance_id: str) -> State | None:
        try:
            return State.model_validate_json((self.path / instance_id / "state.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def states(self) -> dict[str, State]:
        found = [self.state(file.parent.name) for file in sorted(self.path.glob("*/state.json"))]
        return {state.instance_id: state for state in found if state is not None}

    def attempt(self, number: int) -> Folder:
        """Of the attempt `number`: the first is the run itself, so that a run can be given more attempts later."""
        return self if number == 1 else Folder(self.path / FURTHER / str(number))

    def every(self) -> dict[int, Folder]:
        """The folders of all attempts by their numbers, 1 at least."""
        names = [path.name for path in self.path.glob(f"{FURTHER}/*") if path.is_dir()]
        numbers = sorted(int(name) for name in names if name.isascii() and name.isdigit() and int(name) > 1)
        return {number: self.attempt(number) for number in (1, *numbers)}

    def attempts(self) -> dict[str, tuple[State, ...]]:
        """The states of each instance, one for each attempt at it. One made on other terms than the first does not count."""
        tried = self.states()
        found = {name: [state] for name, state in tried.items()}
        for number, folder in self.every().items():
            for name, state in folder.states().items() if number > 1 else ():
                if name in tried and state.terms == tried[name].terms:
                    found[name].append(state)
        return {name: tuple(states) for name, states in found.items()}

    def known(self) -> list[str]:
        """The instances of which the folder knows something."""
        return sorted({*self.states(), *self.predictions()})

    def write_state(self, state: State) -> None:
        write_whole(self.instance(state.instance_id) / "state.json", state.model_dump_json(indent=2) + "\n")

    def predictions(self) -> dict[str, Prediction]:
        file = self.path / "preds.json"
        return read_predictions(file) if file.exists() else {}

    def write_predictions(self, predictions: Mapping[str, Prediction]) -> None:
        """preds.json, and the same as lines in preds.jsonl."""
        documents = {name: predictions[name].model_dump() for name in sorted(predictions)}
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "preds.json", json.dumps(documents, indent=2, ensure_ascii=False) + "\n")
        lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents.values()]
        write_whole(self.path / "preds.jsonl", "".join(lines))


def read_predictions(file: Path) -> dict[str, Prediction]:
    """JSON lines, a list, or an object by instance. Raises StartError."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise StartError(f"--predictions {file}: {error.strerror}") from error
    try:
        lines = [json.loads(line) for line in text.split("\n") if line.strip()] if file.suffix == ".jsonl" else json.loads(text)
        if isinstance(lines, dict):
            lines = [{"instance_id": name, **value} for name, value in lines.items()]
        found = TypeAdapter(list[Prediction]).validate_python(lines)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StartError(f"--predictions {file}: {place}: {first['msg']}") from error
    except (ValueError, TypeError) as error:
        raise StartError(f"--predictions {file} holds no predictions: {error}") from error
    return {prediction.instance_id: prediction for prediction in found}


def results_in(path: Path) -> Folder:
    """Raises StartError for a folder without results."""
    results = Folder(path.resolve())
    if not results.known():
        raise StartError(f"{path}: {'it holds no results of a run' if path.is_dir() else 'there is no such folder'}")
    return results


def counted(folder: Folder, ids: Iterable[str]) -> list[str]:
    """Those of `ids` that were not found to be impossible to grade here."""
    states = folder.states()
    return [item for item in ids if item not in states or states[item].outcome != "environment_invalid"]


def official_report(folder: Folder, ids: Iterable[str], predictions: Mapping[str, Prediction]) -> dict[str, object]:
    """The run report of the official harness, schema version 2, over the instances `ids`."""
    wanted = set(ids)
    states = {name: state for name, state in folder.states().items() if name in wanted}
    submitted = set(predictions) & wanted
    empty = {name for name in submitted if not predictions[name].model_patch}
    completed = {name for name in submitted - empty if name in states and _has_official_report(states[name])}
    resolved = {name for name in completed if states[name].resolved}
    errors = submitted - empty - completed
    reasons: dict[str, str] = {}
    infra: set[str] = set()
    for name in sorted((completed - resolved) | errors):
        log = folder.path / name / "test_output.txt"
        reason, sure = classify(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else ("", False)
        if reason:
            reasons[name] = reason
            infra |= {name} if sure else set()
    lists = {
        "completed": completed,
        "incomplete": wanted - submitted,
        "empty_patch": empty,
        "submitted": submitted,
        "resolved": resolved,
        "unresolved": completed - resolved,
        "infra_failure": infra,
        "ambiguous_failure": set(reasons) - infra,
        "error": errors,
    }
    counted = ("submitted", "completed", "resolved", "unresolved", "infra_failure", "ambiguous_failure", "empty_patch", "error")
    return {
        "total_instances": len(wanted),
        **{f"{name}_instances": len(lists[name]) for name in counted},
        **{f"{name}_ids": sorted(names) for name, names in lists.items()},
        "failure_reasons": reasons,
        "schema_version": 2,
    }


def _has_official_report(state: State) -> bool:
    return state.outcome == "done" and state.reason not in {APPLY_FAILED, TIMED_OUT}


def summary(folder: Folder, ids: Iterable[str]) -> dict[str, object]:
    """kcode's own figures: what could not be graded here is named and never counted among the valid."""
    wanted = list(ids)
    states = folder.states()
    by_outcome = {name: states[name].outcome for name in wanted if name in states}
    valid = [name for name, outcome in by_outcome.items() if outcome == "done"]
    resolved = [name for name in valid if states[name].resolved]
    return {
        "total": len(wanted),
        "locally_valid": len(valid),
        "resolved": len(resolved),
        "unresolved": len(valid) - len(resolved),
        "empty_patch": sum(states[name].empty_patch for name in valid),
        "errors": sum(outcome == "error" for outcome in by_outcome.values()),
        "environment_invalid": sum(outcome == "environment_invalid" for outcome in by_outcome.values()),
        "not_run": len(wanted) - len(by_outcome),
        **_over_attempts(folder, wanted),
        "instances": {
            name: {
                "outcome": state.outcome,
                "resolved": state.resolved,
                "reason": state.reason,
                "seed": state.seed,
                "environment": state.environment,
            }
            for name, state in ((name, states[name]) for name in by_outcome)
        },
    }


def _over_attempts(folder: Folder, wanted: list[str]) -> dict[str, object]:
    """pass@k, and each attempt by itself where there is more than one."""
    tried = {name: states for name, states in folder.attempts().items() if name in wanted}
    by_number: dict[int, list[State]] = {}
    for state in (state for states in tried.values() for state in states):
        by_number.setdefault(state.attempt, []).append(state)
    found: dict[str, object] = {"pass_at": {str(k): rate.document() for k, rate in pass_rates(tried).items()}}
    if max(by_number, default=1) > 1:
        found["attempts"] = [_attempt(number, by_number[number]) for number in sorted(by_number)]
    return found


def _attempt(number: int, states: list[State]) -> dict[str, object]:
    return {
        "attempt": number,
        "seeds": sorted({state.seed for state in states if state.seed is not None}),
        "resolved": sum(state.resolved for state in states),
        "finished": sum(state.outcome == "done" for state in states),
        "errors": sum(state.outcome == "error" for state in states),
    }


def pass_rates(attempts: Mapping[str, tuple[State, ...]]) -> dict[int, Share]:
    """pass@k for every k up to the most attempts that any instance has finished; pass@1 always.

    For each k those instances count that have k finished attempts, so a run that was broken off says less, not something else.
    """
    finished = [[state.resolved for state in states if state.outcome == "done"] for states in attempts.values()]
    most = max(map(len, finished), default=1)
    return {
        k: share([pass_at(k, len(tried), sum(tried)) for tried in finished if len(tried) >= k])
        for k in range(1, max(most, 1) + 1)
    }
