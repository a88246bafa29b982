"""A model that knows some texts by heart and reads every other text in their light; deterministic, causal like a real one."""

from __future__ import annotations

import math
import re

from kcode.errors import ModelError
from kcode.model import Alternative, Continuation, ScoredText, TokenScore, Usage
from kcode.models.scripted import Reply, Script, ScriptedModel

# Bytes outside ASCII are tokens of their own, as byte-level vocabularies have it for rare characters.
TOKEN = re.compile(rb"\n|\r|[ \t]+|[A-Za-z_]+|[0-9]+|[\x00-\xff]", re.DOTALL)
SURE = math.log(0.9)
UNSURE = math.log(0.02)
UNLIKELY = math.log(0.001)
FILLERS = (b" ", b"\n", b"x")
# One token in common says nothing of what follows.
MIN_SUFFIX = 2
MAX_SUFFIX = 40


def tokens_of(text: bytes) -> list[bytes]:
    return TOKEN.findall(text)


class Memory:
    """Predicts what follows the longest end of a text that stands in one of the known texts."""

    def __init__(self, *texts: str) -> None:
        self._known = [tokens_of(text.encode()) for text in texts]

    def next_token(self, before: list[bytes]) -> bytes | None:
        """None where no known text has the last tokens, and at the end of one."""
        best, found = MIN_SUFFIX - 1, None
        for known in self._known:
            for place in range(1, len(known)):
                size = 0
                while size < min(place, len(before), MAX_SUFFIX) and known[place - 1 - size] == before[-1 - size]:
                    size += 1
                if size > best:
                    best, found = size, known[place]
        return found


class ReadingModel(ScriptedModel):
    """Answers as scripted; scores and continues text from memory.

    A token that memory has in its place is sure; another one is unlikely and memory's is the alternative. Where memory is blank
    everything is equally unlikely. `read` and `continued` keep what was asked. With `broken` every score fails so.
    """

    def __init__(self, *known: str, replies: tuple[Reply, ...] = (), broken: ModelError | None = None) -> None:
        super().__init__(Script(replies=replies))
        self._memory = Memory(*known)
        self._broken = broken
        self.read: list[tuple[str, int]] = []
        self.continued: list[str] = []

    async def score(self, text: str, start: int, alternatives: int) -> ScoredText:
        self.read.append((text, start))
        if self._broken is not None:
            raise self._broken
        tokens = tokens_of(text.encode())
        scores: list[TokenScore] = []
        at = 0
        for place, token in enumerate(tokens):
            if place and at + len(token) > start:
                scores.append(self._score(tokens[:place], token, at, alternatives))
            at += len(token)
        return ScoredText(tuple(scores), Usage(prompt_tokens=len(tokens)))

    async def continue_text(self, text: str, stop: str, max_tokens: int, draft: str = "") -> Continuation:
        self.continued.append(text)
        tokens = tokens_of(text.encode())
        written: list[bytes] = []
        while len(written) < max_tokens and (token := self._memory.next_token([*tokens, *written])) is not None:
            if token == stop.encode():
                break
            written.append(token)
        usage = Usage(prompt_tokens=len(tokens), completion_tokens=len(written))
        return Continuation(b"".join(written).decode(errors="replace"), usage)

    def _score(self, before: list[bytes], token: bytes, at: int, alternatives: int) -> TokenScore:
        sure = self._memory.next_token(before)
        if sure is None:
            likely = [(token, UNSURE), *((filler, UNSURE) for filler in FILLERS if filler != token)]
        elif sure == token:
            likely = [(token, SURE), *((filler, UNLIKELY) for filler in FILLERS if filler != token)]
        else:
            likely = [(sure, SURE), (token, UNLIKELY), *((filler, UNLIKELY) for filler in FILLERS if filler not in (sure, token))]
        own = next(logprob for other, logprob in likely if other == token)
        named = tuple(Alternative(other.decode(errors="replace"), logprob) for other, logprob in likely[:alternatives])
        return TokenScore(at, len(token), own, named)
