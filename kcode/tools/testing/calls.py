"""Which functions of the project each test called, as observer.py wrote it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ValidationError


class CallsLine(BaseModel):
    test: str
    outcome: str
    calls: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class TestCalls:
    """`places` are functions as (path, first line with decorators); `test` is the id that a FailingTest has."""

    __test__ = False

    test: str
    failed: bool
    places: frozenset[tuple[str, int]]


def parse(lines: str) -> tuple[TestCalls, ...]:
    """Tests that ran to their end; skipped ones left out."""
    found: list[TestCalls] = []
    for line in lines.splitlines():
        try:
            read = CallsLine.model_validate_json(line)
        except ValidationError:
            break  # half-written by a run that was killed
        if read.outcome != "skipped":
            found.append(TestCalls(read.test, read.outcome == "failed", frozenset(read.calls)))
    return tuple(found)
