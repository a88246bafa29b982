"""From a chat request to its events: prepares, submits, follows the engine, cancels when nobody listens any more."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from kcode_backend.chat.stops import StopTexts
from kcode_backend.engine.request import Event, Failed, Finished, Prefilled, Sampled, Scored
from kcode_backend.errors import OutOfContext
from kcode_backend.http.answer import Answer, Json
from kcode_backend.http.body import ChatBody, NamedChoice, chat_messages, declarations
from kcode_backend.http.errors import RequestRefused

if TYPE_CHECKING:
    from kcode_backend.serving import Ask, Prepared, Serving

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
"""A stream is never silent for longer."""
_REMEMBERED_SESSIONS = 64


class SessionLengths:
    """How much of a session's previous context a new prompt has dropped: 0 as long as prompts only grow."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def dropped(self, session: str, prompt: tuple[int, ...]) -> int:
        """Tokens of the last context that `prompt` does not begin with."""
        last = self._last.get(session, ())
        if prompt[: len(last)] == last:
            return 0
        same = next(
            (at for at, pair in enumerate(zip(last, prompt, strict=False)) if pair[0] != pair[1]), min(len(last), len(prompt))
        )
        return len(last) - same

    def remember(self, session: str, ids: tuple[int, ...]) -> None:
        if not session:
            return
        self._last[session] = ids
        self._last.move_to_end(session)
        while len(self._last) > _REMEMBERED_SESSIONS:
            self._last.popitem(last=False)


class Completion:
    """One request. `events` drives it; `answer` holds the result afterwards."""

    def __init__(self, serving: Serving, prepared: Prepared, body: ChatBody, name: str, sessions: SessionLengths) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex[:24]}"
        self.created = int(time.time())
        self.answer = Answer(prepared.parser, StopTexts(body.stops), prepared.first_call, len(prepared.prompt))
        self._serving = serving
        self._prepared = prepared
        self._body = body
        self._name = name
        self._sessions = sessions
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        generation = prepared.generation(
            lambda event: loop.call_soon_threadsafe(self._events.put_nowait, event) and None, serving.format.stop_ids
        )
        try:
            self._ticket = serving.engine.submit(generation)
        except OutOfContext as error:
            raise RequestRefused(413, "context_length_exceeded", str(error)) from error

    def cancel(self) -> None:
        """Stop computing; harmless when it is over."""
        self._serving.engine.cancel(self._ticket)

    async def chunks(self) -> AsyncGenerator[Json]:
        """The stream's chunks up to the usage chunk; a failure comes as RequestRefused. Leaving early cancels."""
        over = False
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            async for delta in self._deltas():
                yield delta
            over = True
            yield self._chunk({}, self.answer.finish)
            extension = self.answer.extension(self._serving.model.fingerprint)
            yield {**self._frame("chat.completion.chunk"), "choices": [], "usage": self.answer.usage(), "kcode": extension}
        finally:
            if not over:
                self.cancel()
            self._log(over)

    def whole(self) -> Json:
        """The answer as one object, once `chunks` is exhausted."""
        choice: Json = {"index": 0, "message": self.answer.message(), "finish_reason": self.answer.finish, "logprobs": None}
        extension = self.answer.extension(self._serving.model.fingerprint)
        return {**self._frame("chat.completion"), "choices": [choice], "usage": self.answer.usage(), "kcode": extension}

    async def _deltas(self) -> AsyncGenerator[Json]:
        progress: Json = {"prefill": {"done": 0, "total": len(self._prepared.prompt), "cached": 0}}
        while self.answer.finish is None:
            try:
                event = await asyncio.wait_for(self._events.get(), HEARTBEAT_S)
            except TimeoutError:
                yield self._progress(progress)
                continue
            match event:
                case Prefilled(done, total, cached):
                    self.answer.prefilled(event)
                    progress = {"prefill": {"done": done, "total": total, "cached": cached}}
                    yield self._progress(progress)
                case Sampled(ids):
                    for delta in self.answer.sampled(ids):
                        yield self._chunk(delta)
                    progress = {"decode": {"done": len(self.answer.ids)}}
                    if self.answer.finish is not None:
                        self.cancel()
                case Finished():
                    for delta in self.answer.finished(event):
                        yield self._chunk(delta)
                case Scored():
                    raise AssertionError("a chat request never asks for scores")
                case Failed(message):
                    raise RequestRefused(500, "engine_failed", message)

    def _frame(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self._name}

    def _chunk(self, delta: Json, finish: str | None = None) -> Json:
        choice: Json = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._frame("chat.completion.chunk"), "choices": [choice]}

    def _progress(self, progress: Json) -> Json:
        return {**self._frame("chat.completion.chunk"), "choices": [], "kcode": progress}

    def _log(self, over: bool) -> None:
        answer, session = self.answer, self._body.kcode.session
        prompt = self._prepared.prompt
        dropped = self._sessions.dropped(session, prompt)
        if over:
            self._sessions.remember(session, (*prompt, *answer.ids))
        new = answer.prompt_tokens - answer.cached_tokens
        log.info(
            "%s session=%s prompt=%d cached=%d new=%d dropped=%d answer=%d prefill=%.1f/s decode=%.1f/s %s",
            self.id,
            session or "-",
            answer.prompt_tokens,
            answer.cached_tokens,
            new,
            dropped,
            len(answer.ids),
            new / answer.prefill_s if answer.prefill_s else 0.0,
            (len(answer.ids) - 1) / answer.decode_s if answer.decode_s else 0.0,
            answer.finish if over else "cancelled",
        )


async def begin(serving: Serving, body: ChatBody, raw: Json, name: str, sessions: SessionLengths) -> Completion:
    """Check the request against the model and hand it to the engine. Raises RequestRefused and BadConversation."""
    # Imported here because it imports torch; by now the loaded model has done so.
    from kcode_backend.chat.grammar import BadGrammar
    from kcode_backend.serving import Ask

    messages = chat_messages(body.messages, serving.model.fingerprint, serving.model.config.vocab)
    choice = body.tool_choice or "auto"
    ask: Ask = Ask(
        messages=messages,
        tools=declarations(body.tools, raw.get("tools")),
        choice="named" if isinstance(choice, NamedChoice) else choice,
        named=choice.function.name if isinstance(choice, NamedChoice) else None,
        sampling=body.sampling(serving.format.sampling),
        max_tokens=body.limit,
        grammar=body.kcode.grammar,
        prefix=body.kcode.prefix or "",
        priority=body.kcode.priority,
        single_call=body.parallel_tool_calls is False,
    )
    if ask.choice in ("required", "named") and not ask.tools:
        raise RequestRefused(400, "invalid_value", f"tool_choice: {ask.choice!r} needs tools, and none are given")
    try:
        # Tokenising a long conversation and compiling a grammar take a while; other streams go on meanwhile.
        prepared = await asyncio.to_thread(serving.prepare, ask)
    except BadGrammar as error:
        raise RequestRefused(400, "invalid_grammar", str(error)) from error
    return Completion(serving, prepared, body, name, sessions)
