"""How many tokens a server takes, learnt from its refusals when it does not say so beforehand."""

from __future__ import annotations

import json
import re

from pydantic import BaseModel, ValidationError

TOO_LONG_STATUSES = frozenset({400, 413, 422, 500})
"""llama.cpp's server has used 500 for it, and llama-cpp-python's still does."""
BYTES_PER_TOKEN = 4.0
"""Of a request whose server has counted none so far; English text and code are about that."""
SURE_SHARE = 0.9
"""Of a prompt that was refused without a number: so much of it is taken for the limit."""
_TOO_LONG = re.compile(
    r"context[_ ](length|size|window)|maximum context|model token limit|model max length|prompt is too long"
    r"|input token count .*exceed|input tokens exceed",
    re.IGNORECASE,
)
_OTHER_MATTER = re.compile(r"max_(completion_|new_)?tokens\W+(is too large|must be)|per minute", re.IGNORECASE)
_LIMITS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"maximum context length (?:is|of) ([\d,_]+)",
        r"([\d,_]+) maximum context length",
        r"context (?:length|size|window)(?: of)?(?: only)? \(?([\d,_]+)",
        r"token limit: ?([\d,_]+)",
        r"max length: ?([\d,_]+)",
        r"> ?([\d,_]+) maximum",
        r"configured limit of ([\d,_]+) tokens",
        r"tokens allowed \(?([\d,_]+)",
    )
)


class _Error(BaseModel):
    n_ctx: int | None = None


class _Refusal(BaseModel):
    error: _Error = _Error()


class ContextLimit:
    """`tokens` is what a server takes, prompt and answer together; None while nothing is known."""

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens
        self._bytes_per_token = BYTES_PER_TOKEN
        self._accepted = 0

    def accepted(self, sent_bytes: int, prompt_tokens: int) -> None:
        """A request of that size was answered; 0 tokens when the server does not count."""
        if prompt_tokens > 0:
            self._bytes_per_token = sent_bytes / prompt_tokens
            self._accepted = max(self._accepted, prompt_tokens)

    def refused(self, status: int, body: bytes, sent_bytes: int) -> bool:
        """Whether a request of that size was refused because it is too long; what can be learnt from it is learnt."""
        text = body.decode("utf-8", "replace")
        if status not in TOO_LONG_STATUSES or not _TOO_LONG.search(text) or _OTHER_MATTER.search(text):
            return False
        told = _told(text)
        if told is None:
            # What was refused exceeds the limit and what was answered does not; between the two nothing is known.
            told = max(int(sent_bytes / self._bytes_per_token * SURE_SHARE), self._accepted)
        self.tokens = told if self.tokens is None else min(self.tokens, told)
        return True


def _told(text: str) -> int | None:
    """The limit that a refusal names, None for none. Sources: the servers' own wordings, see tests/core/test_context_limit.py."""
    try:
        n_ctx = _Refusal.model_validate(json.loads(text)).error.n_ctx
    except (ValueError, ValidationError):
        n_ctx = None
    if n_ctx:
        return n_ctx
    for pattern in _LIMITS:
        found = pattern.search(text)
        digits = re.sub(r"\D", "", found[1]) if found else ""
        if digits and int(digits) > 0:
            return int(digits)
    return None
