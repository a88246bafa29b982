"""POST /v1/completions: plain text or token ids in, text out, without a chat format; also scores the prompt itself.

With `echo` and `logprobs` K the prompt's tokens are scored, from byte `kcode.score_from` of the prompt on: how likely each was,
and the K likeliest tokens in its place. `max_tokens` 0 asks for nothing else. `suffix` fills the gap between it and the prompt,
with models that were trained for it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from kcode_backend.chat.stops import StopTexts
from kcode_backend.engine.request import Failed, Finished, Generation, Prefilled, Sampled, SamplingParams, Scored, Sink
from kcode_backend.http.answer import Json, usage
from kcode_backend.http.branches import Branch, Branches
from kcode_backend.http.errors import RequestRefused
from kcode_backend.http.likely import LikelyToken, LikelyTokens
from kcode_backend.http.metrics import Outcome, Tokens
from kcode_backend.http.scored import ScoredPrompt
from kcode_backend.http.slot import Room
from kcode_backend.http.textbody import TextBody, fill_markers, read_prompts

if TYPE_CHECKING:
    from kcode_backend.tokenizer import TokenStream


@dataclass(slots=True)
class TextAnswer:
    """One answer as far as it has come."""

    prompt: ScoredPrompt
    stream: TokenStream
    stops: StopTexts
    likely: LikelyTokens | None
    started_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    finish: str | None = None
    echoed: bool = False

    def sampled(self, event: Sampled, stop_ids: frozenset[int]) -> str:
        """The text that these tokens give. A stop text ends the answer here: `finish` is set then."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started_s
        self.drafted_tokens += event.drafted
        self.accepted_tokens += event.accepted
        new: list[str] = []
        for place, token in enumerate(event.ids):
            self.ids.append(token)
            if self.likely and event.likelihoods:
                self.likely.push(token, event.likelihoods[place])
            if token not in stop_ids:
                new.append(self.stops.push(self.stream.push(token)))
            if self.stops.hit:
                self.finish = "stop"
                break
        self.text += new
        return "".join(new)

    def finished(self, event: Finished) -> str:
        """The last text."""
        last = self.stops.push(self.stream.flush()) + self.stops.finish()
        self.text.append(last)
        self.finish, self.cached_tokens = event.reason, event.cached_tokens
        return last

    def take_likely(self) -> list[LikelyToken]:
        """The tokens of the text that was given so far; text that a stop text may still cut off is not among them."""
        if self.likely is None:
            return []
        over = self.finish is not None and not self.stops.hit
        bounded = self.stops.active and not over
        return self.likely.take(sum(len(piece.encode()) for piece in self.text) if bounded else None)


class TextCompletion:
    """One request and its answers, `n` for each prompt; see Answering."""

    def __init__(self, room: Room, body: TextBody) -> None:
        """Raises RequestRefused."""
        self._room = room
        self._body = body
        model, self._stop_ids = room.serving.model, room.serving.format.stop_ids
        prompts = read_prompts(body, model.tokenizer, model.config.vocab, room.name)
        if body.suffix is not None and (markers := fill_markers(model.tokenizer)):
            self._stop_ids |= markers.ends
        self._sampling = body.sampling(SamplingParams(), model.config.vocab)
        self._draft = tuple(model.tokenizer.encode(body.kcode.draft))
        self._prompts = [ScoredPrompt(model.tokenizer, prompt) for prompt in prompts]
        self._count = body.n or 1
        self._answers = [self._answer(prompt) for prompt in self._prompts for _ in range(self._count)]
        self._frame: Json = {
            "id": f"cmpl-{uuid.uuid4().hex[:24]}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": room.name,
        }
        self._outcome: Outcome = "cancelled"
        self._closed = False
        # The first answer to each prompt computes it, and the scores with it.
        leaders = [index - index % self._count for index in range(len(self._answers))]
        branches = [
            Branch(self._generation(index, index == leader), None if index == leader else leader)
            for index, leader in enumerate(leaders)
        ]
        self._branches = Branches(room.serving.engine, branches, room.opened)

    async def chunks(self) -> AsyncGenerator[Json | None]:
        """See Answering."""
        try:
            while any(answer.finish is None for answer in self._answers):
                found = await self._branches.next()
                if found is None:
                    yield None
                    continue
                index, event = found
                answer = self._answers[index]
                if answer.finish is not None:
                    continue
                match event:
                    case Sampled():
                        yield self._chunk(answer, index, answer.sampled(event, self._stop_ids))
                        if answer.finish is not None:
                            self._branches.end(index)
                    case Finished():
                        yield self._chunk(answer, index, answer.finished(event))
                    case Scored():
                        answer.prompt.scored(event)
                    case Prefilled(cached=cached):
                        answer.cached_tokens = cached
                    case Failed():
                        raise AssertionError("Branches raises failures")
        except RequestRefused:
            self._outcome = "failed"
            raise
        self._outcome = "ok"
        if self._body.usage_in_stream:
            yield {**self._frame, "choices": [], "usage": self._usage()}

    def whole(self) -> Json:
        """See Answering."""
        choices: list[Json] = []
        for index, answer in enumerate(self._answers):
            tokens = answer.likely.taken() if answer.likely else []
            text = (answer.prompt.text if self._body.echo else "") + "".join(answer.text)
            choice: Json = {"index": index, "text": text, "finish_reason": answer.finish}
            choice["logprobs"] = self._logprobs(answer, tokens, bool(self._body.echo), 0)
            choices.append(choice if len(self._answers) == 1 else {**choice, "kcode": {"token_ids": answer.ids}})
        lead = self._answers[0]
        speculation = {"drafted": lead.drafted_tokens, "accepted": lead.accepted_tokens}
        extension: Json = {"token_ids": lead.ids, "scores": self._prompts[0].described(), "speculation": speculation}
        return {**self._frame, "choices": choices, "usage": self._usage(), "kcode": extension}

    def close(self) -> None:
        """See Answering."""
        if self._closed:
            return
        self._closed = True
        self._branches.close()
        tokens = Tokens(
            sum(len(prompt.ids) for prompt in self._prompts),
            sum(answer.cached_tokens for answer in self._answers[:: self._count]),
            sum(len(answer.ids) for answer in self._answers),
        )
        self._room.counts.ended("completions", self._outcome, tokens, self._answers[0].first_token_s)

    def _answer(self, prompt: ScoredPrompt) -> TextAnswer:
        tokenizer = self._room.serving.model.tokenizer
        likely = LikelyTokens(tokenizer, self._stop_ids) if self._body.logprobs is not None else None
        return TextAnswer(prompt, tokenizer.stream(), StopTexts(self._body.stops), likely)

    def _generation(self, index: int, scores: bool) -> Callable[[Sink], Generation]:
        body, sampling, prompt = self._body, self._sampling, self._answers[index].prompt
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index % self._count)
        return partial(
            Generation,
            prompt.ids,
            sampling=sampling,
            max_tokens=body.limit,
            stop_ids=self._stop_ids,
            priority=body.kcode.priority,
            draft=self._draft,
            speculate=body.kcode.speculate,
            scored_from=prompt.first_scored(body.kcode.score_from) if scores and body.scored else None,
            alternatives=body.logprobs or 0,
            likelihoods=body.logprobs,
        )

    def _chunk(self, answer: TextAnswer, index: int, text: str) -> Json:
        echo = bool(self._body.echo) and not answer.echoed
        answer.echoed = True
        before = sum(map(len, answer.text)) - len(text) + (len(answer.prompt.text) if self._body.echo else 0)
        logprobs = self._logprobs(answer, answer.take_likely(), echo, before)
        text = answer.prompt.text + text if echo else text
        return {**self._frame, "choices": [{"index": index, "text": text, "finish_reason": answer.finish, "logprobs": logprobs}]}

    def _logprobs(self, answer: TextAnswer, tokens: list[LikelyToken], echo: bool, before: int) -> dict[str, list[object]] | None:
        """`before`: characters of the returned text before these tokens, if the prompt is not among them."""
        if answer.likely is None or not (tokens or (echo and answer.prompt.scores)):
            return None
        if not echo:
            return answer.likely.text(tokens, before)
        own = answer.likely.text(tokens, len(answer.prompt.text))
        return {name: [*values, *own[name]] for name, values in answer.prompt.logprobs().items()}

    def _usage(self) -> Json:
        prompt = sum(len(prompt.ids) for prompt in self._prompts)
        answered = sum(len(answer.ids) for answer in self._answers)
        return usage(prompt, answered, sum(answer.cached_tokens for answer in self._answers[:: self._count]))
