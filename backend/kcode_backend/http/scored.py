"""A prompt whose own tokens may be scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kcode_backend.engine.request import Scored

if TYPE_CHECKING:
    from kcode_backend.tokenizer import Tokenizer

Json = dict[str, object]


class ScoredPrompt:
    """The ids of a prompt, their bytes, and how likely each was as far as that is known."""

    def __init__(self, tokenizer: Tokenizer, ids: tuple[int, ...]) -> None:
        self.ids = ids
        self.scores: dict[int, tuple[float, tuple[tuple[int, float], ...]]] = {}
        """By place: the logprob and the likeliest tokens."""
        self._tokenizer = tokenizer
        self._pieces = [tokenizer.decode_bytes([token]) for token in ids]
        self.text = b"".join(self._pieces).decode("utf-8", "replace")

    def scored(self, event: Scored) -> None:
        for place, entry in enumerate(zip(event.logprobs, event.alternatives, strict=True), event.start):
            self.scores[place] = entry

    def first_scored(self, byte: int) -> int:
        """The first token that reaches beyond `byte`; the very first token has no score."""
        end = 0
        for place, piece in enumerate(self._pieces):
            end += len(piece)
            if end > byte:
                return max(1, place)
        return len(self._pieces)

    def logprobs(self) -> dict[str, list[object]]:
        """In the shape of the OpenAI API."""
        texts = [_text(piece) for piece in self._pieces]
        offsets: list[object] = []
        length = 0
        for text in texts:
            offsets.append(length)
            length += len(text)
        places = range(len(self.ids))
        own: list[object] = [self.scores[place][0] if place in self.scores else None for place in places]
        top: list[object] = [self._top(self.scores[place][1]) if place in self.scores else None for place in places]
        return {"tokens": [*texts], "token_logprobs": own, "top_logprobs": top, "text_offset": offsets}

    def described(self) -> list[Json]:
        """Exact ids and byte offsets, which the OpenAI shape cannot carry."""
        starts = [0]
        for piece in self._pieces:
            starts.append(starts[-1] + len(piece))
        return [
            {
                "index": place,
                "id": self.ids[place],
                "start": starts[place],
                "bytes": len(self._pieces[place]),
                "logprob": round(logprob, 5),
                "alternatives": [
                    {"id": token, "text": _text(self._tokenizer.decode_bytes([token])), "logprob": round(likely, 5)}
                    for token, likely in alternatives
                ],
            }
            for place, (logprob, alternatives) in sorted(self.scores.items())
        ]

    def _top(self, alternatives: Sequence[tuple[int, float]]) -> dict[str, float]:
        return {_text(self._tokenizer.decode_bytes([token])): logprob for token, logprob in alternatives}


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")
