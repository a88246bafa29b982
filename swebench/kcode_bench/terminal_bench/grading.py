"""A task's own tests over what the agent left, in a sandbox in which nothing of the agent runs."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

from kcode.errors import InfrastructureError
from kcode_bench.terminal_bench.task import Task
from kcode_bench.terminal_bench.view import Box
from kcode_bench.terminal_bench.world import World, read_plain, write_new

SUMMARY = re.compile(r"^(PASSED|FAILED|ERROR|XFAIL|XPASS|SKIPPED)\b", re.M)
GOOD = {"PASSED", "XFAIL", "SKIPPED"}


class RewardMissing(InfrastructureError):
    """The tests left no reward that can be read. `kind` is Harbor's name for it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class VerifierTimeout(InfrastructureError):
    """The tests did not end in time."""


async def verify(task: Task, world: World, logs: Path, network: str, limit_s: float) -> dict[str, float]:
    """The rewards. `logs` becomes the trial's verifier folder, with test-stdout.txt and reward.txt or reward.json.

    The tests come into a folder that did not exist while the agent worked, the rewards into one it never saw. Raises
    RewardMissing, VerifierTimeout, SandboxUnavailable and SandboxFailed.
    """
    shutil.rmtree(logs, ignore_errors=True)
    top = world.folder / "logs"
    shutil.rmtree(top, ignore_errors=True)
    for name in ("verifier", "agent", "artifacts"):
        (top / name).mkdir(parents=True)
    tests = world.folder / "tests"
    shutil.rmtree(tests, ignore_errors=True)
    if task.tests.is_dir():
        shutil.copytree(task.tests, tests)
    else:
        tests.mkdir()
    if task.layout != "harbor":
        shutil.copy(task.script, tests / task.script.name)
    given = dict(task.verifier_environment) | ({} if task.layout == "harbor" else {"TEST_DIR": "/tests"})
    view = world.view({"tests": tests, "logs": top})
    try:
        async with Box(view, world.walls(("/logs", "/tests"), network, given)) as box:
            command = ["bash", f"/tests/{task.script.name}"]
            done = await box.exec(command, timeout_s=limit_s, cwd=task.plan.workdir, mixed=True)
    finally:
        # Links are taken as links: what they name is never read.
        shutil.copytree(top / "verifier", logs, symlinks=True)
    write_new(logs / "test-stdout.txt", done.stdout)
    if done.exit_code is None:
        raise VerifierTimeout(f"the tests did not end within {limit_s:g} s")
    if task.layout == "harbor":
        return _rewards(logs)
    reward = float(all_passed(done.stdout.decode(errors="replace")))
    write_new(logs / "reward.txt", f"{reward:g}\n".encode())
    return {"reward": reward}


def all_passed(output: str) -> bool:
    """By pytest's short summary, the last one if there are several."""
    _, found, summary = output.rpartition("short test summary info")
    words: list[str] = SUMMARY.findall(summary) if found else []
    return bool(words) and set(words) <= GOOD


def _rewards(logs: Path) -> dict[str, float]:
    """reward.json, or else the one number of reward.txt."""
    document = read_plain(logs / "reward.json")
    if document is not None:
        try:
            given: object = json.loads(document)
        except ValueError as error:
            raise RewardMissing("VerifierOutputParseError", f"reward.json: {error}") from error
        values = given if isinstance(given, dict) else {"reward": given}
        return {str(name): _finite("reward.json", value) for name, value in values.items()}
    text = read_plain(logs / "reward.txt")
    if text is None:
        raise RewardMissing("RewardFileNotFoundError", "the tests wrote neither /logs/verifier/reward.txt nor reward.json")
    if not text.strip():
        raise RewardMissing("RewardFileEmptyError", "/logs/verifier/reward.txt is empty")
    try:
        return {"reward": _finite("reward.txt", float(text))}
    except ValueError as error:
        raise RewardMissing("VerifierOutputParseError", f"reward.txt: {text[:80]!r} is no number") from error


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RewardMissing("VerifierOutputParseError", f"{name}: {value!r} is no finite number")
    return float(value)
