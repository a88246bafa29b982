"""One turn without a screen: events to stdout in the wanted format, diagnostics to stderr, the outcome as an exit code."""

from __future__ import annotations

import asyncio
import difflib
import json
import os
import shutil
import signal
import sys
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, TextIO

import kcode
from kcode.attempts import Attempts, Outcome, Plan
from kcode.errors import Aborted, CheckpointFailed, StartError
from kcode.events import (
    AgentState,
    CallFinished,
    CallStarted,
    ContextCompacted,
    DiffDisplay,
    Event,
    Notice,
    PlainDisplay,
    SandboxViolation,
    StepFinished,
    TestsDisplay,
    TurnFinished,
    TurnStatus,
)
from kcode.messages import Message, Text, Thinking, ToolCall
from kcode.model import Usage
from kcode.opening import Sessions
from kcode.session import Session
from kcode_sandbox.violation import Violation

Format = Literal["text", "json", "stream-json"]
EXIT_CODES: dict[TurnStatus, int] = {"finished": 0, "error": 2, "limit": 3, "loop": 3, "interrupted": 4}
SUBTYPES: dict[TurnStatus, str] = {
    "finished": "success",
    "limit": "error_max_turns",
    "loop": "error_loop",
    "error": "error_during_execution",
    "interrupted": "error_interrupted",
}


@dataclass(frozen=True, slots=True)
class HeadlessRun:
    """What to do: `resume_id` as in Sessions.open; `output_dir` gets result.json, transcript.jsonl and diff.patch."""

    prompt: str
    workspace: Path
    format: Format = "text"
    resume_id: str | None = None
    output_dir: Path | None = None
    attempts: Plan | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """How the turn ended."""

    finished: TurnFinished
    session_id: str
    model: str
    profile: str
    sandbox: str
    diff: str
    violations: tuple[Violation, ...] = ()
    tried: Outcome | None = None
    compactions: tuple[ContextCompacted, ...] = ()

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.finished.status]

    def document(self) -> dict[str, object]:
        """The JSON document of --output-format json and of result.json."""
        finished = self.finished
        return {
            "status": finished.status,
            "reason": finished.reason,
            "result": finished.result,
            "usage": {
                "prompt_tokens": finished.usage.prompt_tokens,
                "cached_tokens": finished.usage.cached_tokens,
                "completion_tokens": finished.usage.completion_tokens,
            },
            "turns": finished.steps,
            "attempts": finished.attempts,
            "duration_s": round(finished.duration_s, 3),
            "session_id": self.session_id,
            "model": self.model,
            "profile": self.profile,
            "sandbox": self.sandbox,
            "exit_code": self.exit_code,
            "violations": [asdict(violation) for violation in self.violations],
            "compactions": [
                {"before_tokens": event.before_tokens, "after_tokens": event.after_tokens, "by": event.by}
                for event in self.compactions
            ],
            "diff": self.diff,
            **({} if self.tried is None else self.tried.document()),
        }


class Output(Protocol):
    """A format. `event` gets every event but the last; `close` gets what came of it."""

    def begin(self, session: Session, run: HeadlessRun) -> None: ...

    def event(self, event: Event) -> None: ...

    def close(self, report: Report) -> None: ...


class TextOutput:
    """For people: calm progress on stderr; the result and the diff on stdout."""

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        self._stdout = stdout
        self._stderr = stderr

    def begin(self, session: Session, run: HeadlessRun) -> None:
        self._say(f"kcode {kcode.__version__} · {session.model_name} · {session.sandbox_description} · session {session.id}")

    def event(self, event: Event) -> None:
        if isinstance(event, CallStarted):
            self._say(f"  {event.summary}")
        elif isinstance(event, CallFinished):
            detail = _detail(event)
            if detail:
                self._say(f"    {detail}")
        elif isinstance(event, StepFinished) and event.message.calls and event.message.text.strip():
            self._say(_shortened(event.message.text))
        elif isinstance(event, Notice):
            self._say(f"{event.level}: {event.text}")
        elif isinstance(event, AgentState):
            self._say(f"    {event.line}")
        elif isinstance(event, SandboxViolation):
            self._say(f"    sandbox: {event.violation.sentence}")
        elif isinstance(event, ContextCompacted):
            self._say(f"compacted: {event.before_tokens} tokens became {event.after_tokens} (note by {_author(event)})")

    def close(self, report: Report) -> None:
        finished = report.finished
        usage = finished.usage
        self._say(
            f"{finished.status} after {finished.steps} steps, {finished.duration_s:.1f} s, {usage.prompt_tokens} prompt tokens "
            f"({usage.cached_tokens} cached), {usage.completion_tokens} written: {finished.reason}"
        )
        if finished.result:
            print(finished.result, file=self._stdout)
        if report.diff:
            print(f"\n{report.diff}", end="", file=self._stdout)
        self._stdout.flush()

    def _say(self, line: str) -> None:
        print(line, file=self._stderr, flush=True)


class JsonOutput:
    """One document at the end."""

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        self._stdout = stdout
        self._stderr = stderr

    def begin(self, session: Session, run: HeadlessRun) -> None:
        return

    def event(self, event: Event) -> None:
        if isinstance(event, Notice):
            print(f"{event.level}: {event.text}", file=self._stderr, flush=True)

    def close(self, report: Report) -> None:
        print(json.dumps(report.document(), ensure_ascii=False), file=self._stdout, flush=True)


class StreamJsonOutput:
    """A line per message in the shape most consumers parse: system, then assistant and user in turn, then result."""

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._session_id = ""
        self._model = ""
        self._announced: set[str] = set()

    def begin(self, session: Session, run: HeadlessRun) -> None:
        self._session_id = session.id
        self._model = session.model_name
        self._write(
            {
                "type": "system",
                "subtype": "init",
                "cwd": str(run.workspace),
                "model": session.model_name,
                "tools": list(session.profile.tools),
                "permissionMode": session.approval_mode,
                "sandbox": session.sandbox_description,
                "kcode_version": kcode.__version__,
            }
        )

    def event(self, event: Event) -> None:
        if isinstance(event, StepFinished):
            self._assistant(event.message, event.usage, event.finish)
        elif isinstance(event, CallStarted) and event.call.id not in self._announced:
            # A call of the harness's own, which no answer of the model announced.
            self._assistant(Message("assistant", (event.call,)), Usage(), "tool_calls")
        elif isinstance(event, CallFinished):
            result = {"type": "tool_result", "tool_use_id": event.call.id, "content": event.result.text}
            message = {"role": "user", "content": [result | {"is_error": event.result.is_error}]}
            self._write({"type": "user", "message": message, "parent_tool_use_id": None})
        elif isinstance(event, AgentState):
            self._write({"type": "system", "subtype": "agent", **asdict(event)})
        elif isinstance(event, SandboxViolation):
            self._write({"type": "system", "subtype": "violation", "tool_use_id": event.call_id, **asdict(event.violation)})
        elif isinstance(event, ContextCompacted):
            trigger = "auto" if event.is_automatic else "manual"
            facts = {"trigger": trigger, "pre_tokens": event.before_tokens, "post_tokens": event.after_tokens, "by": event.by}
            self._write({"type": "system", "subtype": "compact_boundary", "compact_metadata": facts})
        elif isinstance(event, Notice):
            print(f"{event.level}: {event.text}", file=self._stderr, flush=True)

    def close(self, report: Report) -> None:
        finished = report.finished
        head = {
            "type": "result",
            "subtype": SUBTYPES[finished.status],
            "is_error": finished.status != "finished",
            "duration_ms": round(finished.duration_s * 1000),
            "num_turns": finished.steps,
        }
        self._write(head | report.document() | {"usage": _claude_usage(finished.usage)})

    def _assistant(self, message: Message, usage: Usage, finish: str) -> None:
        content: list[dict[str, object]] = []
        for part in message.parts:
            if isinstance(part, Text):
                content.append({"type": "text", "text": part.text})
            elif isinstance(part, Thinking):
                content.append({"type": "thinking", "thinking": part.text})
            elif isinstance(part, ToolCall):
                self._announced.add(part.id)
                content.append({"type": "tool_use", "id": part.id, "name": part.name, "input": _input(part.arguments)})
        body = {"type": "message", "role": "assistant", "model": self._model, "content": content}
        reasons = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
        body |= {"stop_reason": reasons[finish], "usage": _claude_usage(usage)}
        self._write({"type": "assistant", "message": body, "parent_tool_use_id": None})

    def _write(self, line: dict[str, object]) -> None:
        print(json.dumps({**line, "session_id": self._session_id}, ensure_ascii=False), file=self._stdout, flush=True)


OUTPUTS: dict[Format, type[TextOutput | JsonOutput | StreamJsonOutput]] = {
    "text": TextOutput,
    "json": JsonOutput,
    "stream-json": StreamJsonOutput,
}


def _claude_usage(usage: Usage) -> dict[str, int]:
    """Prompt tokens are split there into those computed and those read from the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


def _author(event: ContextCompacted) -> str:
    return "the model" if event.by == "model" else "kcode"


def _input(arguments: str) -> object:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return {"invalid_json": arguments}


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:199]}…"


def _detail(event: CallFinished) -> str:
    """One line on how a call ended, where that is not plain from its summary."""
    display = event.display
    if isinstance(display, TestsDisplay):
        return f"{display.passed} passed, {display.failed} failed"
    if event.result.is_error:
        return f"failed: {_shortened(event.result.text)}"
    if isinstance(display, DiffDisplay):
        changes = [line[:1] for line in list(difflib.unified_diff(display.old.splitlines(), display.new.splitlines(), n=0))[2:]]
        return f"+{changes.count('+')} -{changes.count('-')} lines"
    assert isinstance(display, PlainDisplay)
    return ""


async def run(wanted: HeadlessRun, sessions: Sessions) -> int:
    """Run one turn and return the exit code. Raises StartError when nothing could be started and Aborted when stopped before.

    SIGINT and SIGTERM end the turn with everything recorded; a second one ends it at once.
    """
    if not wanted.prompt.strip():
        raise StartError("the prompt is empty; give one with -p TEXT, --prompt-file FILE or on standard input")
    if wanted.output_dir is not None:
        _check_output_dir(wanted.output_dir)
    output = OUTPUTS[wanted.format](sys.stdout, sys.stderr)
    stop = _Stop()
    try:
        if wanted.attempts is not None:
            return await _run_attempts(wanted, wanted.attempts, sessions, output, stop)
        session = stop.session = await sessions.open(wanted.resume_id, None, None)
        try:
            await session.start()
            return await _run(wanted, session, output)
        finally:
            await session.close()
    except asyncio.CancelledError as error:
        raise Aborted("stopped by a signal") from error
    except BrokenPipeError as error:
        # The interpreter flushes standard output once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Aborted("whoever read standard output went away") from error


class _Stop:
    """SIGINT and SIGTERM of this run: the first ends a running turn in good order, any other cancels the run."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._is_first = True
        self.session: Session | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._received)

    def _received(self) -> None:
        if self._is_first and self.session is not None and self.session.is_busy:
            self.session.interrupt()
        else:
            self._task.cancel()
        self._is_first = False


async def _run(wanted: HeadlessRun, session: Session, output: Output) -> int:
    output.begin(session, wanted)
    for notice in session.notices:
        output.event(notice)
    finished: TurnFinished | None = None
    violations: list[Violation] = []
    compactions: list[ContextCompacted] = []
    async with aclosing(session.submit(wanted.prompt)) as events:
        async for event in events:
            if isinstance(event, TurnFinished):
                finished = event
            else:
                if isinstance(event, SandboxViolation):
                    violations.append(event.violation)
                elif isinstance(event, ContextCompacted):
                    compactions.append(event)
                output.event(event)
    assert finished is not None
    try:
        diff = await session.diff(last_turn=True)
    except CheckpointFailed as error:
        print(f"warning: no diff: {error}", file=sys.stderr)
        diff = ""
    report = Report(
        finished,
        session.id,
        session.model_name,
        session.profile.name,
        session.sandbox_description,
        diff,
        tuple(violations),
        compactions=tuple(compactions),
    )
    if wanted.output_dir is not None:
        _write_output(wanted.output_dir, report, session.transcript_path)
    output.close(report)
    return report.exit_code


class _Watching:
    """Shows all attempts as one run."""

    def __init__(self, wanted: HeadlessRun, output: Output, stop: _Stop) -> None:
        self._wanted = wanted
        self._output = output
        self._stop = stop
        self.first: Session | None = None
        self.violations: list[Violation] = []
        self.compactions: list[ContextCompacted] = []

    def begun(self, session: Session) -> None:
        self._stop.session = session
        if self.first is None:
            self.first = session
            self._output.begin(session, self._wanted)
            for notice in session.notices:
                self._output.event(notice)

    def event(self, event: Event) -> None:
        if isinstance(event, SandboxViolation):
            self.violations.append(event.violation)
        elif isinstance(event, ContextCompacted):
            self.compactions.append(event)
        self._output.event(event)


async def _run_attempts(wanted: HeadlessRun, plan: Plan, sessions: Sessions, output: Output, stop: _Stop) -> int:
    if wanted.resume_id is not None:
        raise StartError("--attempts begins anew; leave -c and -r away")
    watching = _Watching(wanted, output, stop)
    outcome = await Attempts(sessions, plan, wanted.prompt, watching).run()
    session = watching.first
    assert session is not None
    violations = tuple(watching.violations)
    report = Report(
        outcome.finished,
        session.id,
        session.model_name,
        session.profile.name,
        session.sandbox_description,
        outcome.diff,
        violations,
        outcome,
        tuple(watching.compactions),
    )
    if wanted.output_dir is not None:
        _write_output(wanted.output_dir, report, outcome.transcript)
    output.close(report)
    return report.exit_code


def _check_output_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"--output-dir {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise StartError(f"--output-dir {folder}: it may not be written to")


def _write_output(folder: Path, report: Report, transcript: Path) -> None:
    document = json.dumps(report.document(), ensure_ascii=False, indent=2)
    for name, text in (("result.json", document + "\n"), ("diff.patch", report.diff)):
        partial = folder / f".{name}.partial"
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")
        partial.replace(folder / name)
    shutil.copyfile(transcript, folder / "transcript.jsonl")
