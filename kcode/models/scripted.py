"""A model that reads its answers from a JSON file: for tests and demonstrations, with everything a real one does.

    {"name": "demo", "context_limit": 8192, "resume": false, "replies": [
      {"thinking": "…", "text": "…", "calls": [{"name": "read", "arguments": {"path": "a.py"}}],
       "finish": "length", "delay_s": 0.1, "piece_delay_s": 0.01, "prefill": [100, 200],
       "usage": {"prompt": 10, "cached": 5, "completion": 3}, "error": "…", "dies": true}],
     "beside": {"look at the tests": [{"text": "…"}]}}

Every key is optional. `arguments` may be text, to send invalid JSON. `error` and `dies` end the answer after its text with a
ModelError or EngineDied. With `resume` the first reply used is the one after as many as the conversation has answers.
A conversation in which a user message has a text of `beside` is answered with the replies named there, in their order, whatever
others are answered meanwhile; the last such message counts.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kcode.errors import EngineDied, ModelError, StartError
from kcode.messages import Message, Part, Text, Thinking, ToolCall
from kcode.model import (
    CallDelta,
    Completed,
    Finish,
    ModelEvent,
    ModelRequest,
    PrefillProgress,
    TextDelta,
    ThinkingDelta,
    ToolSpec,
    Usage,
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScriptedCall(_Strict):
    name: str
    arguments: dict[str, object] | str = {}


class ScriptedUsage(_Strict):
    prompt: int = 0
    cached: int = 0
    completion: int = 0


class Reply(_Strict):
    text: str = ""
    thinking: str = ""
    calls: tuple[ScriptedCall, ...] = ()
    finish: Finish | None = None
    delay_s: float = 0.0
    piece_delay_s: float = 0.0
    prefill: tuple[int, ...] = ()
    usage: ScriptedUsage | None = None
    error: str = ""
    dies: bool = False


class Script(_Strict):
    name: str = "scripted"
    context_limit: int | None = 32768
    sees: bool | None = None
    resume: bool = False
    replies: tuple[Reply, ...] = ()
    beside: dict[str, tuple[Reply, ...]] = {}


def read_script(path: Path) -> Script:
    """Raises StartError naming the file and what is wrong with it."""
    try:
        return Script.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StartError(f"cannot read the script {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StartError(f"the script {path} is wrong at {place or 'its start'}: {first['msg']}") from error


class ScriptedModel:
    """Answers request after request with the replies of `script`; `requests` keeps what was asked."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._next: int | None = None
        self._prompt_tokens = 0
        self.requests: list[ModelRequest] = []

    @property
    def name(self) -> str:
        return self._script.name

    @property
    def context_limit(self) -> int | None:
        return self._script.context_limit

    @property
    def sees(self) -> bool | None:
        return self._script.sees

    @property
    def binds_answers(self) -> bool:
        return True

    async def start(self) -> None:
        return

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        self.requests.append(request)
        reply = self._take(request)
        prompt_tokens = _count(request.messages)
        await asyncio.sleep(reply.delay_s)
        for done in reply.prefill:
            yield PrefillProgress(done, reply.prefill[-1], 0)
        for event in _pieces(reply):
            await asyncio.sleep(reply.piece_delay_s)
            yield event
        if reply.dies:
            raise EngineDied("the engine ended while it was answering; send the message again to start it anew")
        if reply.error:
            raise ModelError(reply.error)
        message = _message(reply, sum(len(message.calls) for message in request.messages))
        finish: Finish = reply.finish or ("tool_calls" if reply.calls else "stop")
        usage = Usage(prompt_tokens, min(self._prompt_tokens, prompt_tokens), _count((message,)))
        if reply.usage is not None:
            usage = Usage(reply.usage.prompt, reply.usage.cached, reply.usage.completion)
        self._prompt_tokens = usage.prompt_tokens
        yield Completed(message, finish, usage)

    async def count_tokens(self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...] = ()) -> int | None:
        return _count(messages)

    async def count_texts(self, texts: tuple[str, ...]) -> tuple[int, ...] | None:
        return tuple(len(text) // 4 for text in texts)

    async def close(self) -> None:
        return

    def _take(self, request: ModelRequest) -> Reply:
        place, replies = self._place(request)
        if place >= len(replies):
            raise ModelError(f"the script {self.name!r} has {len(replies)} replies and was asked for number {place + 1}")
        return replies[place]

    def _place(self, request: ModelRequest) -> tuple[int, tuple[Reply, ...]]:
        for index, message in reversed(list(enumerate(request.messages))):
            for text, replies in self._script.beside.items() if message.role == "user" else ():
                if text in message.text:
                    return sum(later.role == "assistant" for later in request.messages[index:]), replies
        if self._next is None:
            answers = sum(1 for message in request.messages if message.role == "assistant")
            self._next = answers if self._script.resume else 0
        place = self._next
        self._next += 1
        return place, self._script.replies


def _arguments(call: ScriptedCall) -> str:
    return call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)


def _pieces(reply: Reply) -> list[ModelEvent]:
    """The answer as it streams: word by word, calls in two pieces."""
    events: list[ModelEvent] = []
    events += [ThinkingDelta(piece) for piece in re.findall(r"\s*\S+\s*", reply.thinking)]
    events += [TextDelta(piece) for piece in re.findall(r"\s*\S+\s*", reply.text)]
    for index, call in enumerate(reply.calls):
        events += [CallDelta(index, call.name, ""), CallDelta(index, "", _arguments(call))]
    return events


def _message(reply: Reply, first_call: int) -> Message:
    parts: list[Part] = []
    if reply.thinking:
        parts.append(Thinking(reply.thinking))
    if reply.text:
        parts.append(Text(reply.text))
    for number, call in enumerate(reply.calls, first_call):
        parts.append(ToolCall(f"functions.{call.name}:{number}", call.name, _arguments(call)))
    return Message("assistant", tuple(parts))


def _count(messages: tuple[Message, ...]) -> int:
    """Four characters to a token: exact enough for a script, and always the same."""
    chars = 0
    for message in messages:
        chars += len(message.text) + len(message.thinking) + sum(len(call.arguments) for call in message.calls)
        chars += sum(len(result.text) for result in message.results)
    return chars // 4 + len(messages)
