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
from kcode_bench.swe.grading import classify

Outcome = Literal["done", "error", "environment_invalid"]


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


@dataclass(frozen=True, slots=True)
class Folder:
    """Of one run. `path` is made when something is written."""

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


def official_report(folder: Folder, ids: Iterable[str], predictions: Mapping[str, Prediction]) -> dict[str, object]:
    """The run report of the official harness, schema version 2, over the instances `ids`."""
    wanted = set(ids)
    states = {name: state for name, state in folder.states().items() if name in wanted}
    submitted = set(predictions) & wanted
    empty = {name for name in submitted if not predictions[name].model_patch}
    completed = {name for name in submitted - empty if name in states and states[name].outcome == "done"}
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
        "instances": {
            name: {"outcome": state.outcome, "resolved": state.resolved, "reason": state.reason, "environment": state.environment}
            for name, state in ((name, states[name]) for name in by_outcome)
        },
    }
