"""POST /v1/completions: plain text or token ids in, text out, without a chat format; also scores the prompt itself.

With `echo` and `logprobs` K the prompt's tokens are scored, from byte `kcode.score_from` of the prompt on: how likely each was,
and the K likeliest tokens in its place. `max_tokens` 0 asks for nothing else. One `choices` entry; streams are not offered here.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from kcode_backend.chat.stops import StopTexts
from kcode_backend.engine.request import Event, Failed, Finished, Generation, Sampled, SamplingParams, Scored
from kcode_backend.errors import OutOfContext
from kcode_backend.http.answer import Json
from kcode_backend.http.body import Lenient, Strict
from kcode_backend.http.errors import RequestRefused

if TYPE_CHECKING:
    from kcode_backend.serving import Serving

MAX_ALTERNATIVES = 20
DEFAULT_MAX_TOKENS = 16


class TextExtensions(Strict):
    score_from: Annotated[StrictInt, Field(ge=0)] = 0
    priority: StrictInt = 0


class TextBody(Lenient):
    prompt: StrictStr | list[Annotated[StrictInt, Field(ge=0)]]
    max_tokens: Annotated[StrictInt, Field(ge=0)] = DEFAULT_MAX_TOKENS
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[StrictInt, Field(ge=0)] | None = None
    stop: StrictStr | list[StrictStr] | None = None
    echo: StrictBool = False
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    stream: Literal[False] = False
    n: Literal[1] = 1
    kcode: TextExtensions = TextExtensions()


class TextCompletion:
    """One request. `run` drives it to its end; leaving early (cancellation) cancels the request."""

    def __init__(self, serving: Serving, body: TextBody, name: str) -> None:
        self._serving = serving
        self._body = body
        self._name = name
        self._tokenizer = serving.model.tokenizer
        self._prompt = self._prompt_ids()
        self._pieces = [self._tokenizer.decode_bytes([token]) for token in self._prompt]
        self._scores: dict[int, tuple[float, tuple[tuple[int, float], ...]]] = {}
        self._ids: list[int] = []

    async def run(self) -> Json:
        """The whole response. Raises RequestRefused."""
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        body = self._body
        scored = body.echo and body.logprobs is not None
        generation = Generation(
            prompt=self._prompt,
            sink=lambda event: loop.call_soon_threadsafe(events.put_nowait, event) and None,
            sampling=SamplingParams(temperature=body.temperature, top_p=body.top_p, seed=body.seed),
            max_tokens=body.max_tokens,
            stop_ids=self._serving.format.stop_ids,
            priority=body.kcode.priority,
            scored_from=self._first_scored() if scored else None,
            alternatives=body.logprobs or 0,
        )
        try:
            ticket = self._serving.engine.submit(generation)
        except OutOfContext as error:
            raise RequestRefused(413, "context_length_exceeded", str(error)) from error
        try:
            return await self._follow(events)
        finally:
            self._serving.engine.cancel(ticket)

    async def _follow(self, events: asyncio.Queue[Event]) -> Json:
        stops = StopTexts((self._body.stop,) if isinstance(self._body.stop, str) else tuple(self._body.stop or ()))
        stream = self._tokenizer.stream()
        text: list[str] = []
        while True:
            match await events.get():
                case Sampled(ids):
                    for token in ids:
                        self._ids.append(token)
                        if token not in self._serving.format.stop_ids:
                            text.append(stops.push(stream.push(token)))
                        if stops.hit:
                            return self._response("".join(text), "stop", 0)
                case Scored(start, logprobs, alternatives):
                    for place, entry in enumerate(zip(logprobs, alternatives, strict=True), start):
                        self._scores[place] = entry
                case Finished() as finished:
                    text += [stops.push(stream.flush()), stops.finish()]
                    return self._response("".join(text), finished.reason, finished.cached_tokens)
                case Failed(message):
                    raise RequestRefused(500, "engine_failed", message)
                case _:
                    pass

    def _prompt_ids(self) -> tuple[int, ...]:
        prompt = self._body.prompt
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt)
        else:
            ids = prompt
            if ids and max(ids) >= self._serving.model.config.vocab:
                raise RequestRefused(400, "invalid_value", f"prompt: token {max(ids)} is beyond the vocabulary")
        if not ids:
            raise RequestRefused(400, "invalid_value", "prompt: it is empty")
        return tuple(ids)

    def _first_scored(self) -> int:
        """The first token that reaches beyond byte `score_from`; the very first token has no score."""
        end = 0
        for place, piece in enumerate(self._pieces):
            end += len(piece)
            if end > self._body.kcode.score_from:
                return max(1, place)
        return len(self._pieces)

    def _response(self, text: str, finish: str, cached: int) -> Json:
        body = self._body
        choice: Json = {"index": 0, "text": (b"".join(self._pieces).decode("utf-8", "replace") if body.echo else "") + text}
        choice |= {"finish_reason": finish, "logprobs": self._logprobs() if self._scores else None}
        usage: Json = {
            "prompt_tokens": len(self._prompt),
            "completion_tokens": len(self._ids),
            "total_tokens": len(self._prompt) + len(self._ids),
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        frame: Json = {"id": f"cmpl-{uuid.uuid4().hex[:24]}", "object": "text_completion", "created": int(time.time())}
        extension: Json = {"token_ids": self._ids, "scores": self._scored_tokens()}
        return {**frame, "model": self._name, "choices": [choice], "usage": usage, "kcode": extension}

    def _logprobs(self) -> Json:
        places = range(len(self._prompt))
        texts = [self._text(piece) for piece in self._pieces]
        offsets: list[int] = []
        for place in places:
            offsets.append(offsets[-1] + len(texts[place - 1]) if place else 0)
        own = [self._scores[place][0] if place in self._scores else None for place in places]
        top = [self._top(self._scores[place][1]) if place in self._scores else None for place in places]
        return {"tokens": texts, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets}

    def _top(self, alternatives: Sequence[tuple[int, float]]) -> dict[str, float]:
        return {self._text(self._tokenizer.decode_bytes([token])): logprob for token, logprob in alternatives}

    def _scored_tokens(self) -> list[Json]:
        """Exact ids and byte offsets, which the OpenAI shape cannot carry."""
        starts = [0]
        for piece in self._pieces:
            starts.append(starts[-1] + len(piece))
        return [
            {
                "index": place,
                "id": self._prompt[place],
                "start": starts[place],
                "bytes": len(self._pieces[place]),
                "logprob": round(logprob, 5),
                "alternatives": [
                    {"id": token, "text": self._text(self._tokenizer.decode_bytes([token])), "logprob": round(likely, 5)}
                    for token, likely in alternatives
                ],
            }
            for place, (logprob, alternatives) in sorted(self._scores.items())
        ]

    @staticmethod
    def _text(piece: bytes) -> str:
        return piece.decode("utf-8", "replace")
