"""Takes keys of well-known forms out of what a model elsewhere is sent.

Each text is judged by itself, so the same text always becomes the same: what was sent once is sent so again, and a prompt only
grows. What is taken out is replaced by a visible `[redacted: kind]`, which is never taken out again.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace

from kcode.messages import Message, Part, Text, Thinking, ToolCall, ToolResult

MIN_BITS = 3.6
"""Per character, of what a name calls a secret: sampled keys have more, words and placeholders less."""
_START, _END = r"(?<![A-Za-z0-9_-])", r"(?![A-Za-z0-9_-])"
_FORMS: tuple[tuple[str, str], ...] = (
    (
        "private key",
        r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----.{32,20000}?-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    ),
    ("AWS key", _START + r"(?:AKIA|ASIA)[A-Z2-7]{16}" + _END),
    ("GitHub token", _START + r"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})" + _END),
    ("GitLab token", _START + r"gl(?:pat|dt|ptt|rt)-[A-Za-z0-9_-]{20,64}" + _END),
    ("Slack token", _START + r"xox[abeoprs]-[0-9]+-[A-Za-z0-9-]{20,250}" + _END),
    ("Google key", _START + r"AIza[A-Za-z0-9_-]{35}" + _END),
    ("Stripe key", _START + r"[sr]k_(?:live|test)_[A-Za-z0-9]{24,247}" + _END),
    ("Anthropic key", _START + r"sk-ant-[a-z0-9]+-[A-Za-z0-9_-]{80,120}" + _END),
    ("OpenAI key", _START + r"sk-(?:(?:proj|svcacct|admin)-[A-Za-z0-9_-]{40,200}|[A-Za-z0-9]{48})" + _END),
    ("Hugging Face token", _START + r"hf_[A-Za-z]{34}" + _END),
    ("npm token", _START + r"npm_[A-Za-z0-9]{36}" + _END),
    ("PyPI token", _START + r"pypi-AgEI[A-Za-z0-9_-]{50,250}" + _END),
    ("JWT", _START + r"eyJ[A-Za-z0-9_-]{10,4000}\.eyJ[A-Za-z0-9_-]{10,8000}\.[A-Za-z0-9_-]{20,2000}" + _END),
)
_FORM = re.compile("|".join(f"(?P<f{number}>{form})" for number, (_, form) in enumerate(_FORMS)), re.DOTALL)
_NAMED = re.compile(
    r"(?P<name>\b[A-Za-z0-9_]*(?:SECRET|TOKEN|PASSWORD|API_?KEY|ACCESS_KEY|PRIVATE_KEY)\b(?:\\?[\"'])?\s{0,3}[=:]\s{0,3}(?:\\?[\"'])?)"
    r"(?P<value>[A-Za-z0-9+/_.~-]{20,512}={0,2})(?![A-Za-z0-9+/_.~(\[-])"
)
_PLAIN = re.compile(r"[0-9a-fA-F-]+|[a-zA-Z_.-]+|[0-9.]+")
"""Hashes, identifiers and versions stand behind such names as well, and are no keys."""


def redacted(text: str) -> tuple[str, frozenset[str]]:
    """The text without keys, and the kinds of what was taken out."""
    kinds: set[str] = set()

    def cover(match: re.Match[str]) -> str:
        kind = _FORMS[int(str(match.lastgroup)[1:])][0]
        kinds.add(kind)
        return f"[redacted: {kind}]"

    def cover_named(match: re.Match[str]) -> str:
        if not _is_sampled(match["value"]):
            return match[0]
        kinds.add("secret")
        return f"{match['name']}[redacted: secret]"

    text = _NAMED.sub(cover_named, _FORM.sub(cover, text))
    return text, frozenset(kinds)


def redacted_message(message: Message) -> tuple[Message, frozenset[str]]:
    """The message itself when it holds no key."""
    kinds: frozenset[str] = frozenset()
    parts: list[Part] = []
    for part in message.parts:
        found: frozenset[str] = frozenset()
        match part:
            case Text(text=text) | Thinking(text=text) | ToolResult(text=text):
                text, found = redacted(text)
                parts.append(replace(part, text=text) if found else part)
            case ToolCall(arguments=arguments):
                arguments, found = redacted(arguments)
                parts.append(replace(part, arguments=arguments) if found else part)
            case _:
                parts.append(part)
        kinds |= found
    return (replace(message, parts=tuple(parts)) if kinds else message), kinds


def _is_sampled(value: str) -> bool:
    """Whether the characters look drawn by chance."""
    if _PLAIN.fullmatch(value) or not any(character.isdigit() for character in value):
        return False
    counts = Counter(value)
    bits = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    return bits >= MIN_BITS and not any(part in value.lower() for part in ("example", "xxxx", "your_", "changeme"))
