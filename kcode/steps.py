"""One model step and one call, recorded: what the loop and every driver of a profile are built from.

A driver is `async def drive(steps: Steps, text: str) -> Ending`. It is called once per turn, with the user's text not yet
recorded, and awaits these until it returns an Ending:

    steps.say(text)                        append a user message
    await steps.ask(how, say=text)         one model call -> StepFinished (its message is in the transcript)
    await steps.call(call)                 one call the model made -> Called (its result is in the transcript)
    steps.spend(usage, as_step=True)       the model was used in another way than by `ask`
    await steps.run(name, arguments)       a call the harness makes, recorded as if the model had made it -> Called
    await steps.probe(name, arguments)     a call the harness makes that only the person sees -> Called
    await steps.snapshot()                 the tree now -> name of the snapshot ("" when there are no checkpoints)
    await steps.restore(snapshot)          the tree as it was then; undoable
    await steps.diff(snapshot)             unified diff from then to now
    steps.mark(), steps.rewind(mark)       forget, for the model, every message recorded since the mark
    await steps.make_room()                compact the conversation if it has grown too long for the next step
    steps.notice(level, text)              one line for the person

Events go out through `emit` as things happen. The limits of the turn are kept here: `ask` raises LimitReached and `call`
raises LoopFound; a driver lets both pass, as it does asyncio.CancelledError and KcodeError. Whoever runs the driver calls
`close_calls` afterwards, so that no recorded call stays without a result.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

from pydantic import BaseModel

from kcode.answers import Partial, receive
from kcode.errors import AnswerBroken, CheckpointFailed, ContextTooLong, EngineDied
from kcode.events import (
    CallFinished,
    CallOutput,
    CallStarted,
    ContextCompacted,
    Notice,
    NoticeLevel,
    PlainDisplay,
    SandboxViolation,
    StepFinished,
    StepStarted,
)
from kcode.messages import Message, Part, Text, ToolCall, ToolResult
from kcode.model import ChatModel, Completed, ModelRequest, Sampling, ToolSpec, Usage
from kcode.reading_calls import find_tool, read_arguments, unknown_tool
from kcode.repeats import STOP_AT, Repeats, advice
from kcode.tools.pictures import Picture, Show
from kcode.tools.together import my_turn
from kcode.tools.tool import Outcome, Tool, replaced_by
from kcode.tools.watched import run_watched
from kcode.turn import Approver, Ask, Called, Emit, Ending, Journal, LimitReached, Limits, LoopFound, Tree

MAX_RESERVE_TOKENS = 1024
Driver = Callable[["Steps", str], Awaitable[Ending]]


class Compactor(Protocol):
    async def make_room(self, steps: Steps, *, refused: bool = False) -> None: ...


class Steps:
    """One turn's steps and calls over a model, its tools and a journal. One driver uses it, one await at a time.

    Calls alone may be awaited together, by kcode/tools/together.py, which sees to it that their results keep their order.
    """

    def __init__(
        self,
        *,
        model: ChatModel,
        tools: tuple[Tool[BaseModel], ...],
        specs: tuple[ToolSpec, ...],
        approval: Approver,
        journal: Journal,
        tree: Tree | None,
        limits: Limits,
        sampling: Sampling,
        session_id: str,
        inbox: deque[str],
        emit: Emit,
        show: Show | None = None,
        compactor: Compactor | None = None,
    ) -> None:
        self.model = model
        self.tools = tools
        self.specs = specs
        self.limits = limits
        self.sampling = sampling
        self.usage = Usage()
        self.step = 0
        self._approval = approval
        self._journal = journal
        self._tree = tree
        self._session_id = session_id
        self._inbox = inbox
        self._emit = emit
        self._show = show
        self._compactor = compactor
        self._pictures: tuple[Picture, ...] = ()
        self._repeats = Repeats()
        self._open: dict[str, ToolCall] = {}
        self._checkpointed = False
        self._by_name = {tool.name: tool for tool in tools}

    @property
    def messages(self) -> tuple[Message, ...]:
        return self._journal.messages

    async def look(self, text: str) -> None:
        """Read the pictures that a person's message names; they go with the next user message."""
        if self._show is not None:
            shown = await self._show(text)
            self._pictures += shown.pictures
            for problem in shown.problems:
                self.notice("warning", problem)

    def say(self, text: str) -> None:
        """Append a user message."""
        pictures, self._pictures = self._pictures, ()
        parts = [part for picture in pictures for part in (Text(f"\n[{picture.text}]\n"), picture.image)]
        self._journal.add(Message("user", (Text(text), *parts)))

    def notice(self, level: NoticeLevel, text: str) -> None:
        self._emit(Notice(level, text))

    def tell(self, event: ContextCompacted) -> None:
        self._emit(event)

    def take_steering(self) -> bool:
        """Append what the person said meanwhile; whether there was anything. Call it only when no call is open."""
        said = bool(self._inbox)
        while self._inbox:
            self.say(self._inbox.popleft())
        return said

    async def ask(self, how: Ask | None = None, say: str = "") -> StepFinished:
        """One model call, after appending `say` as a user message unless it is empty.

        The assistant message is recorded before this returns; its calls are open until `call` or `close_calls`. When
        cancelled, the text streamed so far is recorded. Raises LimitReached before anything is sent.
        """
        how = how or Ask()
        if say:
            self.say(say)
        sampling = self._bounded(how.sampling or self.sampling)
        await self._check_fill()
        self.step += 1
        self._checkpointed = False
        self._emit(StepStarted(self.step))

        def asked() -> ModelRequest:
            messages = self._journal.messages
            return ModelRequest(
                messages,
                self.specs if how.offer_tools else (),
                sampling.of_step(len(messages)),
                tool_choice=how.tool_choice,
                grammar=how.grammar,
                prefix=how.prefix,
                draft=how.draft,
                stop=how.stop,
                session_id=self._session_id,
            )

        started = time.monotonic()
        try:
            completed = await self._answer(asked(), silent=how.silent)
        except ContextTooLong as error:
            if self._compactor is None:
                raise
            self.notice("warning", str(error))
            before = self._journal.messages
            await self._compactor.make_room(self, refused=True)
            if self._journal.messages == before:
                raise
            completed = await self._answer(asked(), silent=how.silent)
        self.usage += completed.usage
        self._journal.add(completed.message, completed.usage)
        self._open = {call.id: call for call in completed.message.calls}
        rate = completed.usage.completion_tokens / completed.decode_s if completed.decode_s > 0 else 0.0
        duration_s = time.monotonic() - started
        finished = StepFinished(self.step, completed.message, completed.finish, completed.usage, duration_s, rate)
        self._emit(finished)
        return finished

    async def call(self, call: ToolCall, *, cut_off: bool = False) -> Called:
        """Run one call of the last answer and record its result; whatever the model did wrong is a result too.

        `cut_off` says that the answer holding the call ended at a length limit. Raises LoopFound after recording.
        """
        outcome, duration_s = await self._run(call, cut_off=cut_off)
        await my_turn()
        count = self._repeats.count(call, outcome.text, changed_files=bool(outcome.changed))
        called = self._finish(call, outcome, duration_s, advice(count, call.name), recorded=True)
        if count >= STOP_AT:
            raise LoopFound(f"{call.name} was called {count} times with the same arguments and the same result")
        return called

    async def run(self, name: str, arguments: Mapping[str, object], text: str = "") -> Called:
        """Make a call in the model's name: recorded as an assistant message (with `text` before the call) and its result."""
        call = ToolCall(f"functions.{name}:{self._journal.call_count}", name, json.dumps(arguments, ensure_ascii=False))
        parts: tuple[Part, ...] = (Text(text), call) if text else (call,)
        self._journal.add(Message("assistant", parts))
        self._open[call.id] = call
        self._checkpointed = False
        return self._finish(call, *await self._run(call), "", recorded=True)

    async def probe(self, name: str, arguments: Mapping[str, object]) -> Called:
        """Make a call that the model never hears of; the person sees it as any other."""
        call = ToolCall(f"probe.{name}:{time.monotonic_ns()}", name, json.dumps(arguments, ensure_ascii=False))
        self._checkpointed = False
        return self._finish(call, *await self._run(call), "", recorded=False)

    def spend(self, usage: Usage, *, as_step: bool = False) -> None:
        """Count tokens that the driver spent on the model outside of `ask`. `as_step` raises LimitReached as `ask` does."""
        self.usage += usage
        if as_step:
            _check_steps(self.limits, self.step)
            self.step += 1

    async def snapshot(self) -> str:
        """Keep the tree as it is; "" when that cannot be done (a Notice says why)."""
        if self._tree is None:
            return ""
        try:
            snapshot = await self._tree.snapshot()
        except CheckpointFailed as error:
            self.notice("warning", f"no checkpoint, so this step cannot be undone: {error}")
            return ""
        self._journal.add_checkpoint(snapshot)
        return snapshot

    async def restore(self, snapshot: str) -> None:
        """Bring the tree back to `snapshot`, which came from this object; nothing to do for ""."""
        if self._tree is not None and snapshot:
            await self._tree.restore(snapshot)

    async def diff(self, snapshot: str) -> str:
        return await self._tree.diff(snapshot) if self._tree is not None and snapshot else ""

    def mark(self) -> int:
        """A place in the conversation for `rewind`; take it only when no call is open."""
        return self._journal.mark()

    def rewind(self, mark: int) -> None:
        """Let the model forget what was recorded since `mark`; the transcript on disk keeps everything."""
        self._open = {}
        self._journal.rewind(mark)

    def close_calls(self, reason: str) -> None:
        """Record `reason` as the error result of every call that has none yet."""
        for call in list(self._open.values()):
            result = ToolResult(call.id, call.name, reason, is_error=True)
            self._journal.add_result(result, PlainDisplay(reason), 0.0)
            self._emit(CallFinished(call, result, PlainDisplay(reason), 0.0))
        self._open = {}

    def _bounded(self, sampling: Sampling) -> Sampling:
        limits = self.limits
        _check_steps(limits, self.step)
        if limits.tokens is None:
            return replace(sampling, max_tokens=sampling.max_tokens or limits.answer_tokens)
        left = limits.tokens - self.usage.completion_tokens
        if left <= 0:
            used = self.usage.completion_tokens
            raise LimitReached(f"the model wrote {used} tokens, the limit is {limits.tokens} (--max-tokens)")
        wanted = sampling.max_tokens or limits.answer_tokens
        return replace(sampling, max_tokens=left if wanted is None else min(left, wanted))

    async def aside(self, messages: tuple[Message, ...], max_tokens: int) -> Completed:
        """A model call about the conversation that is no part of it: nothing is recorded, and no call may be made.

        `messages` begin as the conversation does, so what the model has of it in memory serves here, too.
        """
        sampling = self._bounded(replace(self.sampling, max_tokens=max_tokens))
        request = ModelRequest(
            messages, self.specs, sampling.of_step(len(messages)), tool_choice="none", session_id=self._session_id
        )
        completed = await self._answer(request, silent=True)
        self.usage += completed.usage
        return completed

    async def make_room(self) -> None:
        """Compact the conversation if the next step has too little room. Take no mark before it that is used after it.

        Raises LimitReached when it does not help.
        """
        if self._compactor is not None:
            await self._compactor.make_room(self)

    async def _check_fill(self) -> None:
        fill = await self._journal.fill(self.model, self.specs, MAX_RESERVE_TOKENS)
        if fill.limit is not None and not fill.fits(reserve := reserve_tokens(fill.limit)):
            raise LimitReached(
                f"the conversation holds {fill.words}, of which {reserve} are kept for the answer; "
                "start a new session, or use a model with more context"
            )

    async def _answer(self, request: ModelRequest, *, silent: bool) -> Completed:
        """The answer; one that breaks off is asked for again, since nothing of it has been done or recorded."""
        left = {AnswerBroken: 2, EngineDied: 1}
        while True:
            partial = Partial()
            try:
                return await receive(self.model, request, self._emit, partial, silent=silent)
            except asyncio.CancelledError:
                message = partial.message()
                if message is not None:
                    self._journal.add(message)
                raise
            except (AnswerBroken, EngineDied) as error:
                left[type(error)] -= 1
                if left[type(error)] < 0:
                    raise
                self.notice("warning", f"the answer broke off and is asked for again: {error}")

    async def _run(self, call: ToolCall, *, cut_off: bool = False) -> tuple[Outcome, float]:
        """The outcome and how long the tool took, not the person's answer before it; announced but not yet recorded."""
        tool = find_tool(self._by_name, call.name)
        arguments = read_arguments(tool, call, cut_off=cut_off) if tool is not None else unknown_tool(self._by_name, call.name)
        summary = tool.summary(arguments) if tool is not None and isinstance(arguments, BaseModel) else call.name
        self._emit(CallStarted(call, summary))
        if tool is None or isinstance(arguments, str):
            problem = str(arguments)
            return Outcome(problem, PlainDisplay(problem), is_error=True), 0.0
        before = partial(replaced_by, tool, arguments)
        verdict = await self._approval.decide(replace(call, name=tool.name), tool.access, summary, before)
        if not verdict.allowed:
            return Outcome(verdict.reason, PlainDisplay(verdict.reason), is_error=True, is_refused=True), 0.0
        if tool.access != "read" and not self._checkpointed:
            self._checkpointed = True
            await self.snapshot()
        started = time.monotonic()
        outcome = await run_watched(tool, arguments, lambda text: self._emit(CallOutput(call.id, text)))
        return outcome, time.monotonic() - started

    def _finish(self, call: ToolCall, outcome: Outcome, duration_s: float, advised: str, *, recorded: bool) -> Called:
        result = ToolResult(call.id, call.name, outcome.text + advised, outcome.is_error, outcome.images)
        if recorded:
            self._journal.add_result(result, outcome.display, duration_s)
            self._open.pop(call.id, None)
        self.usage += outcome.usage
        for violation in outcome.violations:
            self._emit(SandboxViolation(violation, call.id))
        self._emit(CallFinished(call, result, outcome.display, duration_s))
        return Called(call, result, outcome.display, outcome.ends_turn, outcome.changed, outcome.is_refused)


def reserve_tokens(limit: int) -> int:
    """What of the context is kept for the answer; without it nothing is asked."""
    return min(MAX_RESERVE_TOKENS, limit // 8)


def _check_steps(limits: Limits, taken: int) -> None:
    if limits.steps is not None and taken >= limits.steps:
        raise LimitReached(f"the turn took {taken} steps, the limit is {limits.steps} (--max-turns)")
