"""What the soak's model does: one call after another whose effects can be counted, and a look after each interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kcode.context import ORPHAN_TEXT
from kcode.messages import Message, ToolResult

JOURNAL, LOG, COUNTER = "journal.txt", "log.md", "counter.txt"
_DONE, _MISSING = "already-done", "not-yet-done"


@dataclass(frozen=True, slots=True)
class Planned:
    """A call; `done_if` is a shell condition that tells whether its effect is there, "" where there is none to repeat."""

    name: str
    arguments: dict[str, object]
    done_if: str = ""


def make_plan(calls: int) -> tuple[Planned, ...]:
    """Ten kinds of calls in turn: appends, edits, insertions, new files, commits, and looks between them."""
    return tuple(_planned(number) for number in range(calls))


def _planned(number: int) -> Planned:
    line = f"step {number}"
    source = f"src/part{number // 10}.py"
    append = Planned("bash", {"command": f"printf '{line}\\n' >> {JOURNAL}"}, f"grep -qx '{line}' {JOURNAL}")
    slow = Planned("bash", {"command": f"sleep 0.05; printf '{line}\\n' >> {JOURNAL}"}, f"grep -qx '{line}' {JOURNAL}")
    before, after = f"count {number // 10}", f"count {number // 10 + 1}"
    kinds = (
        Planned("create", {"path": source, "content": f"def part():\n    return {number}\n"}, f"test -s {source}"),
        append,
        Planned("read", {"path": source}),
        Planned("str_replace", {"path": COUNTER, "old": before, "new": after}, f"grep -qx '{after}' {COUNTER}"),
        slow,
        Planned("grep", {"pattern": f"return {number - 5}", "path": "src"}),
        Planned("insert", {"path": LOG, "line": 0, "text": f"{line}\n"}, f"grep -qx '{line}' {LOG}"),
        Planned("bash", {"command": f"git add -A && git commit -qm '{line}'"}, f"git log --format=%s | grep -qx '{line}'"),
        append,
        Planned("glob", {"pattern": f"src/*{number // 10}.py"}),
    )
    return kinds[number % len(kinds)]


def look(number: int, planned: Planned) -> Planned:
    """Sees whether an interrupted call had its effect."""
    command = f"if {planned.done_if} 2>/dev/null; then echo {_DONE} {number}; else echo {_MISSING} {number}; fi"
    return Planned("bash", {"command": command})


Mode = Literal["go on", "look", "read"]


class Reader:
    """Knows from the conversation alone what is to be called next, as a careful model would."""

    def __init__(self, plan: Sequence[Planned]) -> None:
        self._plan = plan

    def next(self, messages: Sequence[Message]) -> Planned | None:
        """The next call; None when all are done."""
        place: int = 0
        mode: Mode = "go on"
        for message in messages:
            for result in message.results:
                place, mode = self._after(place, mode, result)
        if place >= len(self._plan):
            return None
        planned = self._plan[place]
        if mode == "look":
            return look(place, planned)
        return Planned("read", {"path": planned.arguments["path"]}) if mode == "read" else planned

    def _after(self, place: int, mode: Mode, result: ToolResult) -> tuple[int, Mode]:
        if result.text == ORPHAN_TEXT:
            # What may have had an effect is looked at before it is repeated; the others are simply asked again.
            return place, "look" if self._plan[place].done_if else "go on"
        if mode == "look":
            assert f"{_DONE} {place}" in result.text or f"{_MISSING} {place}" in result.text, result.text
            return (place + 1 if f"{_DONE} {place}" in result.text else place), "go on"
        if mode == "read":
            return place, "go on"
        if result.is_error and "read it first" in result.text:
            return place, "read"
        assert not result.is_error, f"call {place} ({self._plan[place].name}) failed: {result.text}"
        return place + 1, "go on"


def grammar_of(planned: Planned, number: int) -> str:
    """A grammar that allows exactly this call, in the engine's Kimi format."""
    name = json.dumps(f"functions.{planned.name}:{number}")
    arguments = json.dumps(json.dumps(planned.arguments))
    begin, between, end = "<|tool_calls_section_begin|> <|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
    return f"start: {begin} {name} {between} {arguments} {end} <|tool_calls_section_end|>"
