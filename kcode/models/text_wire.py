"""The answers of /v1/completions of our engine: a continuation, or the scores of the prompt."""

from __future__ import annotations

from pydantic import BaseModel

from kcode.model import Alternative, Continuation, ScoredText, TokenScore, Usage


class _Details(BaseModel):
    cached_tokens: int = 0


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details = _Details()

    def counted(self) -> Usage:
        return Usage(self.prompt_tokens, self.prompt_tokens_details.cached_tokens, self.completion_tokens)


class _Alternative(BaseModel):
    text: str
    logprob: float


class _Score(BaseModel):
    start: int
    bytes: int
    logprob: float
    alternatives: list[_Alternative]


class _Extension(BaseModel):
    scores: list[_Score] = []


class _Choice(BaseModel):
    text: str


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage
    kcode: _Extension = _Extension()


def decode_scores(content: bytes) -> ScoredText:
    """Raises pydantic.ValidationError when the engine broke its contract."""
    answer = _Completion.model_validate_json(content)
    tokens = tuple(
        TokenScore(
            score.start, score.bytes, score.logprob, tuple(Alternative(other.text, other.logprob) for other in score.alternatives)
        )
        for score in answer.kcode.scores
    )
    return ScoredText(tokens, answer.usage.counted())


def decode_continuation(content: bytes) -> Continuation:
    """Raises pydantic.ValidationError when the engine broke its contract."""
    answer = _Completion.model_validate_json(content)
    return Continuation(answer.choices[0].text, answer.usage.counted())
