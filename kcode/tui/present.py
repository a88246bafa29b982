"""From events to the screen: which part of the transcript an event adds or changes, and what the activity line says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kcode.events import (
    OWN_COMMAND,
    AgentState,
    CallFinished,
    CallOutput,
    CallPiece,
    CallStarted,
    ContextCompacted,
    Event,
    Notice,
    NoticeLevel,
    Prefill,
    SandboxViolation,
    StepFinished,
    StepStarted,
    TextPiece,
    ThinkingPiece,
    TurnFinished,
    TurnStarted,
)
from kcode.messages import ToolCall
from kcode.tui.blocks import Answer, Remark, Said, Thinking
from kcode.tui.call_block import Call
from kcode.tui.compaction_line import compaction_line
from kcode.tui.figures import duration_text, quantity
from kcode.tui.turn_end import FINISH, end_of_turn, told_at_end
from kcode.tui.widgets.activity import Activity, Doing
from kcode.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from kcode.transcript import Record

NOTICES: Mapping[NoticeLevel, tuple[str, str]] = {"info": ("i", "dim"), "warning": ("!", "warning"), "error": ("✗", "bad")}


class Presenter:
    """Keeps which block is still growing. Events come in the order of kcode.events."""

    def __init__(self, transcript: Transcript, activity: Activity) -> None:
        self._transcript = transcript
        self._activity = activity
        self._answer: Answer | None = None
        self._heard = ""
        self._thinking: Thinking | None = None
        self._thinking_began = 0.0
        self._writing: dict[int, Call] = {}
        self._running: dict[str, Call] = {}
        self._last_notice = ""
        self._last_call: Call | None = None
        self._recalled: Sequence[Record] = ()

    def recall(self, records: Sequence[Record]) -> None:
        """Show a conversation before its session is open; `greet` keeps it if it is that session's."""
        self.replay(records)
        self._recalled = records

    def forget(self) -> None:
        """Take back what was recalled: its session does not open."""
        if self._recalled:
            self._transcript.clear()
        self._recalled = ()

    def greet(self, workspace: str, sandbox: str, records: Sequence[Record]) -> None:
        """Say where kcode works, above the conversation that was had before."""
        from kcode.tui.replay import same_conversation

        if not same_conversation(records, self._recalled):
            self.forget()
        greeting = Remark("◆", f"kcode in {workspace} · {sandbox}", "accent")
        if self._recalled:
            self._transcript.add_first(greeting)
            self._recalled = ()
        else:
            self._transcript.add(greeting)
            self.replay(records)

    def say(self, text: str) -> None:
        self._transcript.add(Said(text))

    def show(self, event: Event) -> None:
        match event:
            case TurnStarted():
                self._heard = ""
                self._activity.start("Working")
            case StepStarted():
                self._drop_unstarted()
                self._activity.show(Doing("Waiting for the model"))
            case Prefill(done=done, total=total):
                self._activity.show(Doing("Reading" if done < total else "Starting to answer", event if done < total else None))
            case TextPiece(text=text):
                self._grow_answer(text)
            case ThinkingPiece(text=text):
                self._grow_thinking(text)
            case CallPiece(index=index, name=name, arguments=arguments):
                self._write_call(index, name, arguments)
            case StepFinished():
                self._close_parts()
                self._activity.show(Doing("Working"))
            case CallStarted(call=call, summary=summary):
                self._start_call(call, summary)
            case CallOutput(call_id=call_id, text=text):
                self._feed_call(call_id, text)
            case CallFinished():
                self._finish_call(event)
            case AgentState():
                pass  # its call shows each line of it
            case SandboxViolation():
                pass  # the call's result says it; the status line counts it
            case ContextCompacted(before_tokens=before, after_tokens=after):
                self._transcript.add(compaction_line(before, after, event.by))
            case Notice(level=level, text=text):
                sign, tone = NOTICES[level]
                self._last_notice = text
                self._transcript.add(Remark(sign, text, tone))
            case TurnFinished():
                self._end_turn(event)

    def replay(self, records: Sequence[Record]) -> None:
        """Show a conversation that was had before."""
        from kcode.tui.replay import blocks_of

        self._transcript.add(*blocks_of(records))

    def ask(self) -> None:
        """The person is asked; the next event says that it is over."""
        self._activity.show(Doing("Waiting for your answer"))

    def stop(self) -> None:
        """The turn ended without its last event: nothing is growing any more."""
        self._close_parts()
        self._drop_unstarted()
        for call in self._running.values():
            call.stop()
            self._transcript.changed(call)
        self._running.clear()
        self._activity.stop()

    def _grow_answer(self, text: str) -> None:
        if self._answer is None:
            if not text.strip():
                return
            self._close_thinking()
            self._answer = Answer()
            self._transcript.add(self._answer)
            self._activity.show(Doing("Answering"))
        self._answer.append(text)
        self._heard += text
        self._transcript.changed(self._answer)

    def _grow_thinking(self, text: str) -> None:
        if self._thinking is None:
            if not text.strip():
                return
            self._answer = None
            self._thinking, self._thinking_began = Thinking(), time.monotonic()
            self._transcript.add(self._thinking)
            self._activity.show(Doing("Thinking"))
        self._thinking.append(text)
        self._transcript.changed(self._thinking)

    def _write_call(self, index: int, name: str, arguments: str) -> None:
        call = self._writing.get(index)
        if call is None:
            self._close_parts()
            call = self._writing[index] = Call(name)
            self._transcript.add(call)
            self._activity.show(Doing("Writing a call"))
        call.write(name, arguments)
        self._transcript.changed(call)

    def _start_call(self, call: ToolCall, summary: str) -> None:
        self._close_parts()
        index = next((index for index, block in self._writing.items() if block.name in {call.name, ""}), None)
        if index is None:
            block = Call(call.name)
            self._transcript.add(block)
        else:
            block = self._writing.pop(index)
        block.start(summary)
        self._running[call.id] = block
        self._transcript.changed(block)
        self._activity.show(Doing(f"Running {block.name}"))

    def _feed_call(self, call_id: str, text: str) -> None:
        block = self._running.get(call_id)
        if block is not None:
            block.output(text)
            self._transcript.changed(block)

    def _finish_call(self, event: CallFinished) -> None:
        block = self._running.pop(event.call.id, None)
        if block is None:
            block = Call(event.call.name)
            block.write(event.call.name, event.call.arguments)
            self._transcript.add(block)
        block.finish(event.display, event.result.is_error, event.duration_s)
        self._heard += event.result.text if event.call.name == FINISH else ""
        self._last_call = block
        self._transcript.changed(block)
        self._activity.show(Doing("Working"))

    def _end_turn(self, event: TurnFinished) -> None:
        self.stop()
        if event.reason == OWN_COMMAND:
            # Who runs a command wants to read what it writes; its call says all there is to say.
            if self._last_call is not None:
                self._last_call.toggle(True)
                self._transcript.changed(self._last_call)
            return
        if told := told_at_end(event.result, event.reason, self._heard):
            self._transcript.add(Answer(told))
        more = [quantity(event.steps, "step"), duration_text(event.duration_s)]
        reason = "" if event.reason == self._last_notice else event.reason
        self._transcript.add(end_of_turn(event.status, reason, event.usage, more))

    def _close_thinking(self) -> None:
        if self._thinking is not None:
            self._thinking.finish(time.monotonic() - self._thinking_began)
            self._transcript.changed(self._thinking)
            self._thinking = None

    def _close_parts(self) -> None:
        self._close_thinking()
        self._answer = None

    def _drop_unstarted(self) -> None:
        for call in self._writing.values():
            call.stop()
            self._transcript.changed(call)
        self._writing.clear()
