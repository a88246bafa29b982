"""Whether an instance can be graded here: its tests must fail before the known fix and pass after it."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kcode_bench.swe.environment import Environment, EnvironmentFailed, Place, write_whole
from kcode_bench.swe.grading import TestLog, grade
from kcode_bench.swe.rows import Row
from kcode_bench.swe.specs import Spec
from kcode_bench.swe.trial import run_tests

MAX_NAMED = 3


class Gold(BaseModel):
    """`key` changes with the environment and the row, so that an earlier answer counts as long as it holds."""

    model_config = ConfigDict(frozen=True)

    key: str
    state: Literal["valid", "environment_invalid"]
    reason: str = ""


def check_gold(place: Place, row: Row, spec: Spec, environment: Environment, limit_s: float) -> Gold:
    """The answer for this row in this environment, from gold.json where it stands there. The place must be held.

    The logs of both runs are left beside it, before.txt and after.txt. Raises as run_tests does.
    """
    file = place.folder / "gold.json"
    key = hashlib.sha256("\0".join((environment.key, row.model_dump_json(), f"{limit_s:g}")).encode()).hexdigest()
    try:
        standing = Gold.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        standing = None
    if standing is not None and standing.key == key:
        return standing
    reason = _fault(place, row, spec, environment, limit_s)
    gold = Gold(key=key, state="environment_invalid" if reason else "valid", reason=reason)
    write_whole(file, gold.model_dump_json(indent=2))
    return gold


def _fault(place: Place, row: Row, spec: Spec, environment: Environment, limit_s: float) -> str:
    """Why the instance is not valid here, "" when it is."""
    if not row.patch.strip():
        return "the row has no gold patch to check with"
    try:
        before = _logged(place, "before.txt", run_tests(place, row, spec, environment, b"", limit_s))
        after = _logged(place, "after.txt", run_tests(place, row, spec, environment, row.patch.encode(), limit_s))
    except EnvironmentFailed as error:
        return str(error)
    without = grade(row, spec.parser, before)
    if without.tests is not None and without.tests.f2p_success:
        return f"passes without the fix: {_some(without.tests.f2p_success)}"
    fixed = grade(row, spec.parser, after)
    if fixed.tests is None:
        return f"with the gold patch nothing can be graded: {fixed.reason}"
    if not fixed.resolved:
        return f"fails with the gold patch: {_some((*fixed.tests.f2p_failure, *fixed.tests.p2p_failure))}"
    return ""


def _logged(place: Place, name: str, log: TestLog) -> TestLog:
    (place.folder / name).write_text(log.text, encoding="utf-8")
    return log


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
