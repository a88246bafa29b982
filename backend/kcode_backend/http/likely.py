"""How likely the tokens of an answer were, in the shapes of the two OpenAI endpoints."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kcode_backend.engine.request import Likelihood

if TYPE_CHECKING:
    from kcode_backend.tokenizer import Tokenizer

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class LikelyToken:
    data: bytes
    start: int
    """Bytes before it."""
    likelihood: Likelihood


class LikelyTokens:
    """The tokens of one answer that are text; control tokens and those that end an answer are left out."""

    def __init__(self, tokenizer: Tokenizer, silent: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._silent = silent
        self._tokens: list[LikelyToken] = []
        self._bytes = 0
        self._taken = 0

    def push(self, token: int, likelihood: Likelihood) -> None:
        if token in self._silent:
            return
        data = self._tokenizer.decode_bytes([token])
        self._tokens.append(LikelyToken(data, self._bytes, likelihood))
        self._bytes += len(data)

    def take(self, size: int | None) -> list[LikelyToken]:
        """What was not taken before and begins within the first `size` bytes of the answer; None takes everything."""
        end = self._taken
        while end < len(self._tokens) and (size is None or self._tokens[end].start < size):
            end += 1
        taken = self._tokens[self._taken : end]
        self._taken = end
        return taken

    def taken(self) -> list[LikelyToken]:
        return self._tokens[: self._taken]

    def chat(self, tokens: list[LikelyToken]) -> Json:
        """`logprobs` of a chat choice or chunk."""
        return {"content": [self._chat_token(token) for token in tokens], "refusal": None}

    def text(self, tokens: list[LikelyToken], offset: int) -> dict[str, list[object]]:
        """`logprobs` of a text choice or chunk; `offset` is that of the first token in the text that is returned."""
        offsets: list[object] = []
        for token in tokens:
            offsets.append(offset)
            offset += len(_text(token.data))
        return {
            "tokens": [_text(token.data) for token in tokens],
            "token_logprobs": [token.likelihood.logprob for token in tokens],
            "top_logprobs": [
                {_text(self._tokenizer.decode_bytes([i])): logprob for i, logprob in token.likelihood.alternatives}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _chat_token(self, token: LikelyToken) -> Json:
        top = [_described(self._tokenizer.decode_bytes([i]), logprob) for i, logprob in token.likelihood.alternatives]
        return {**_described(token.data, token.likelihood.logprob), "top_logprobs": top}


def _described(data: bytes, logprob: float) -> Json:
    return {"token": _text(data), "logprob": logprob, "bytes": list(data)}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
