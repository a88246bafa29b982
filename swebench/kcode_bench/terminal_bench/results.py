"""Results of trials added up: for Harbor's readers, and for a person."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from kcode_bench.terminal_bench.task import Task

Result = dict[str, object]


def reward_of(result: Result) -> float | None:
    """The reward by that name, or the only one; None when it was not graded."""
    graded = result.get("verifier_result")
    if not isinstance(graded, dict):
        return None
    rewards = cast("dict[str, float]", graded["rewards"])
    return rewards.get("reward", next(iter(rewards.values()), None) if len(rewards) == 1 else None)


def failure_of(result: Result) -> tuple[str, str] | None:
    failed = result.get("exception_info")
    if not isinstance(failed, dict):
        return None
    return str(failed["exception_type"]), str(failed["exception_message"])


def told(result: Result) -> str:
    """One trial in a line."""
    reward, failed = reward_of(result), failure_of(result)
    graded = "not graded" if reward is None else "resolved" if reward == 1.0 else f"reward {reward:g}"
    return graded + (f" ({failed[0]}: {failed[1]})" if failed is not None else "")


def summary(tasks: Sequence[Task], results: dict[str, Result]) -> dict[str, object]:
    """An error is a trial that was not graded; a task that cannot be run here counts nowhere else."""
    trials: dict[str, object] = {}
    for name, result in results.items():
        failed = failure_of(result)
        trials[name] = {"task": result["task_name"], "reward": reward_of(result), "exception": failed[0] if failed else None}
    rewards = [reward_of(result) for result in results.values()]
    graded = [reward for reward in rewards if reward is not None]
    barred = {task.name: list(task.obstacles) for task in tasks if task.obstacles}
    return {
        "tasks": len(tasks),
        "not_runnable": len(barred),
        "trials": len(results),
        "resolved": sum(reward == 1.0 for reward in graded),
        "unresolved": sum(reward != 1.0 for reward in graded),
        "errors": len(rewards) - len(graded),
        "mean_reward": round(sum(graded) / len(graded), 4) if graded else None,
        "environment": {"kind": "bwrap"},
        "results": trials,
        "obstacles": barred,
    }


def job_result(results: Sequence[Result], started: str) -> dict[str, object]:
    """Harbor's result.json of a job."""
    evals: dict[str, dict[str, dict[str, list[str]]]] = {}
    for result in results:
        config = cast("dict[str, dict[str, object]]", result["config"])
        agent = config["agent"]
        key = "__".join(str(part) for part in (agent["name"], agent["model_name"], "local") if part)
        entry = evals.setdefault(key, {"reward": {}, "exceptions": {}})
        reward, failed = reward_of(result), failure_of(result)
        if reward is not None:
            entry["reward"].setdefault(f"{reward:g}", []).append(str(result["trial_name"]))
        if failed is not None:
            entry["exceptions"].setdefault(failed[0], []).append(str(result["trial_name"]))
    failures = sum(failure_of(result) is not None for result in results)
    stats = {
        "n_completed_trials": len(results),
        "n_errored_trials": failures,
        "evals": {key: _eval(entry) for key, entry in evals.items()},
    }
    now = datetime.now(UTC).isoformat()
    return {
        "id": str(uuid.uuid4()),
        "started_at": started,
        "finished_at": now,
        "n_total_trials": len(results),
        "stats": stats,
    }


def _eval(entry: dict[str, dict[str, list[str]]]) -> dict[str, object]:
    graded = [float(reward) for reward, names in entry["reward"].items() for _ in names]
    mean = sum(graded) / len(graded) if graded else 0.0
    return {
        "n_trials": len(graded),
        "n_errors": sum(map(len, entry["exceptions"].values())),
        "metrics": [{"mean": mean}],
        "reward_stats": {"reward": entry["reward"]},
        "exception_stats": entry["exceptions"],
    }
