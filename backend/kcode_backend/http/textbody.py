"""The body of POST /v1/completions and the prompts it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StrictBool, StrictInt, StrictStr

from kcode_backend.http.body import MAX_ALTERNATIVES, MAX_ANSWERS, SamplingFields, Strict
from kcode_backend.http.errors import RequestRefused

if TYPE_CHECKING:
    from kcode_backend.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16


class TextExtensions(Strict):
    score_from: Annotated[StrictInt, Field(ge=0)] = 0
    priority: StrictInt = 0
    draft: StrictStr = ""
    speculate: StrictBool = True


class TextBody(SamplingFields):
    prompt: StrictStr | list[StrictStr | StrictInt | list[StrictInt]]
    suffix: StrictStr | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    echo: StrictBool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    kcode: TextExtensions = TextExtensions()

    @property
    def limit(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def scored(self) -> bool:
        """The prompt's own tokens are to be scored."""
        return bool(self.echo) and self.logprobs is not None


@dataclass(frozen=True, slots=True)
class FillMarkers:
    """The tokens between which a model was trained to fill a gap."""

    prefix: int
    suffix: int
    middle: int
    ends: frozenset[int]
    """What ends the middle, beside the tokens that end every answer."""


def fill_markers(tokenizer: Tokenizer) -> FillMarkers | None:
    """None when the model has no such tokens."""
    special = tokenizer.special_ids
    for left, right in (("<|", "|>"), ("<", ">")):
        ids = [special.get(f"{left}fim_{part}{right}") for part in ("prefix", "suffix", "middle")]
        if None not in ids:
            prefix, suffix, middle = (token for token in ids if token is not None)
            between = {name for name in special if name.startswith((f"{left}fim_", f"{left}file_sep", f"{left}repo_name"))}
            return FillMarkers(prefix, suffix, middle, frozenset(special[name] for name in between))
    return None


def read_prompts(body: TextBody, tokenizer: Tokenizer, vocab_size: int, name: str) -> list[tuple[int, ...]]:
    """The token ids of each prompt. Raises RequestRefused naming the wrong value."""
    if body.suffix is not None:
        return [_filled(body, tokenizer, name)]
    prompt = body.prompt
    texts = [prompt] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, str)]
    lists = [] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, list)]
    ids = [] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, int)]
    if sum(map(bool, (texts, lists, ids))) > 1:
        raise _wrong("prompt: give texts, token ids, or lists of token ids, not several of them")
    found = [tokenizer.encode(text) for text in texts] or lists or [ids]
    for one in found:
        if not one:
            raise _wrong("prompt: it is empty")
        if max(one) >= vocab_size:
            raise _wrong(f"prompt: token {max(one)} is beyond the vocabulary")
        if min(one) < 0:
            raise _wrong(f"prompt: {min(one)} is no token")
    answers = len(found) * (body.n or 1)
    if answers > MAX_ANSWERS:
        raise _wrong(f"prompt: {len(found)} prompts with {body.n or 1} answers each are {answers}; at most {MAX_ANSWERS}")
    return [tuple(one) for one in found]


def _filled(body: TextBody, tokenizer: Tokenizer, name: str) -> tuple[int, ...]:
    markers = fill_markers(tokenizer)
    if markers is None:
        message = f"suffix: {name} has no tokens for filling a gap (<|fim_prefix|> and others); ask without suffix"
        raise RequestRefused(400, "unsupported_parameter", message, "suffix")
    if not isinstance(body.prompt, str) or body.echo:
        raise RequestRefused(400, "invalid_value", "suffix: it needs one prompt that is a text, and no echo", "suffix")
    encode = tokenizer.encode
    return (markers.prefix, *encode(body.prompt), markers.suffix, *encode(body.suffix or ""), markers.middle)


def _wrong(message: str) -> RequestRefused:
    return RequestRefused(400, "invalid_value", message, "prompt")
