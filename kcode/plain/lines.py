"""Events as lines that come one after another: nothing moves, nothing is drawn again, nothing hangs on a colour or a sign."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO

from kcode.events import (
    OWN_COMMAND,
    AgentState,
    CallFinished,
    CallOutput,
    CallStarted,
    ContextCompacted,
    DiffDisplay,
    Display,
    Event,
    Notice,
    PlainDisplay,
    Prefill,
    SandboxViolation,
    StepFinished,
    StepStarted,
    TestsDisplay,
    TextPiece,
    ThinkingPiece,
    TurnFinished,
)
from kcode.transcript import Answered, Ran, Record, Said, Turn
from kcode.tui.clean import clean, one_line
from kcode.tui.compaction_line import compaction_line
from kcode.tui.diff import counts, diff_lines
from kcode.tui.figures import duration_text, quantity
from kcode.tui.turn_end import FINISH, end_of_turn, told_at_end

PREFILL_S = 5.0
FAILED_LINES = 8


class Lines:
    """Writes to a terminal that is read from top to bottom. A call is one line, whose end comes with its result."""

    def __init__(self, out: TextIO) -> None:
        self.shows_output = False
        """What commands write is shown as it comes, not how much it was: for those that the user runs."""
        self._out = out
        self._is_line_begun = False
        self._open_call = ""
        self._part = ""
        self._heard = ""
        self._summaries: dict[str, str] = {}
        self._prefill_told = 0.0

    def say(self, text: str) -> None:
        """Lines of their own."""
        self._end_line()
        self._write(f"{clean(text)}\n")

    def ring(self) -> None:
        """The terminal's bell, which leaves no trace in the text."""
        self._out.write("\a")

    def show(self, event: Event) -> None:
        match event:
            case StepStarted():
                self._part, self._prefill_told = "", time.monotonic()
            case Prefill(done=done, total=total) if done < total and time.monotonic() - self._prefill_told > PREFILL_S:
                self._prefill_told = time.monotonic()
                self.say(f"reading: {done:,} of {total:,} tokens")
            case TextPiece(text=text):
                self._stream(text)
            case ThinkingPiece() if self._part != "thinking":
                self._part = "thinking"
                self.say("thinking")
            case StepFinished():
                self._end_line()
            case CallStarted(call=call, summary=summary):
                self._end_line()
                self._summaries[call.id] = one_line(summary)
                self._write(f"call: {one_line(summary)}")
                self._open_call = call.id
                if self.shows_output:
                    self._end_line()
            case CallOutput(text=text) if self.shows_output:
                self._write(clean(text))
            case CallFinished():
                self._finish(event)
            case AgentState() | SandboxViolation() | ContextCompacted() | Notice():
                self.say(_told(event))
            case TurnFinished():
                self._end(event)
            case _:
                pass

    def recall(self, records: Sequence[Record]) -> None:
        """The last turn of a conversation that was had before, and how many came before it."""
        turns = [number for number, record in enumerate(records) if isinstance(record, Turn)]
        if len(turns) > 1:
            self.say(f"{quantity(len(turns) - 1, 'earlier message')} before this one:")
        for record in records[turns[-1] :] if turns else ():
            match record:
                case Turn(text=text):
                    self.say(f"> {text}")
                case Said(message=message) if message.role == "assistant" and message.text.strip():
                    self.say(message.text.strip())
                case Answered(result=result, display=display, duration_s=duration_s):
                    self.say(f"call: {result.name}: {outcome(display, result.is_error, duration_s)}")
                case Ran(result=result):
                    self.say(result.text)
                case _:
                    pass

    def _stream(self, text: str) -> None:
        if self._part != "answer":
            text = text.lstrip()
            if not text:
                return
            self._end_line()
            self._part = "answer"
        self._write(clean(text))
        self._heard += text

    def _finish(self, event: CallFinished) -> None:
        self._heard += event.result.text if event.call.name == FINISH else ""
        told = outcome(event.display, event.result.is_error, event.duration_s)
        if self._open_call == event.call.id:
            self._write(f": {told}\n")
        else:
            self.say(told if self.shows_output else f"{self._summaries.get(event.call.id, event.call.name)}: {told}")
        if event.result.is_error and not self.shows_output and isinstance(event.display, PlainDisplay | TestsDisplay):
            rows = clean(event.display.text).strip("\n").splitlines()
            self.say("\n".join(f"  {row}" for row in rows[-FAILED_LINES:]))

    def _end(self, event: TurnFinished) -> None:
        self._end_line()
        heard, self._heard = self._heard, ""
        if event.reason != OWN_COMMAND:
            if told_at_end(event.result, event.reason, heard):
                self.say(event.result.strip())
            more = [quantity(event.steps, "step"), duration_text(event.duration_s)]
            self.say(end_of_turn(event.status, event.reason, event.usage, more).text.replace(" · ", ", "))

    def _end_line(self) -> None:
        self._open_call = ""
        if self._is_line_begun:
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
            self._is_line_begun = not text.endswith("\n")


def outcome(display: Display, is_error: bool, duration_s: float) -> str:
    """ "done, 3 lines, 0.4 s"."""
    parts = ["failed" if is_error else "done"]
    match display:
        case DiffDisplay(old=old, new=new):
            added, removed = counts(diff_lines(old, new))
            parts.append(f"{quantity(added, 'line')} added and {removed} removed")
        case TestsDisplay(passed=passed, failed=failed):
            parts.append(f"{passed} passed and {failed} failed")
        case PlainDisplay(text=text):
            parts.append(quantity(len(text.splitlines()), "line"))
    return ", ".join([*parts, duration_text(duration_s)] if duration_s > 0 else parts)


def _told(event: AgentState | SandboxViolation | ContextCompacted | Notice) -> str:
    match event:
        case AgentState():
            return event.line.replace(" · ", ", ")
        case SandboxViolation(violation=violation):
            return f"sandbox: {violation.sentence}"
        case ContextCompacted(before_tokens=before, after_tokens=after, by=by):
            return compaction_line(before, after, by).text
        case Notice(level=level, text=text):
            return f"{level}: {text}"
