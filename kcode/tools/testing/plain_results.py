"""Results of plain_runner.py, from the JSON lines it writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ValidationError

from kcode.tools.testing.report import FailingTest, Frame, Results


class FrameLine(BaseModel):
    path: str
    line: int
    function: str
    source: str


class EventLine(BaseModel):
    event: Literal["start", "passed", "failed", "error", "skipped", "done"]
    id: str
    message: str
    frames: list[FrameLine]


def parse(lines: str) -> Results | None:
    """None when the runner wrote nothing."""
    events = list(read_events(lines))
    if not events:
        return None
    counts = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}
    failing: list[FailingTest] = []
    running = ""
    for event in events:
        if event.event == "start":
            running = event.id
        elif event.event != "done":
            running = ""
            counts[event.event] += 1
        else:
            running = ""
        if event.event in {"failed", "error"}:
            frames = tuple(Frame(frame.path, frame.line, frame.function, frame.source) for frame in event.frames)
            failing.append(FailingTest(event.id, event.message, frames))
    return Results(counts["passed"], counts["failed"], counts["error"], counts["skipped"], tuple(failing), running)


def read_events(lines: str) -> Iterator[EventLine]:
    """The events; a last line that a killed runner left half-written is dropped."""
    for line in lines.splitlines():
        try:
            yield EventLine.model_validate_json(line)
        except ValidationError:
            return
