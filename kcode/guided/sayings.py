"""What a message says of a call: what it gives, and what it should give."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

MAX_SAYINGS = 4
MAX_CALL_CHARS = 300
REST_CHARS = 400
ATTRIBUTE = re.compile(r"(?:\.[A-Za-z_]\w*)+(?![\w(])")
CALL = re.compile(r"(?<![\w.])[A-Za-z_][\w.]*\(")
WRONGLY = r"(?:(?:currently|now|still|actually|always|wrongly|incorrectly|just|only)\s+)*"
GIVES = (
    rf"(?:it\s+)?{WRONGLY}(?:returns?|gives?|yields?|prints?|is|produces?|shows?|raises?|throws?|evaluates\s+to|results\s+in"
    r"|fails\s+with|==|=>|->)(?:\s+(?:me|us|back))?:?"
)
GOT = rf"(?:(?:it|this|that|I|we|but|and|is|was|{WRONGLY})\s+)*(?:{GIVES}|g[eo]ts?|was|:)"
LINK = r"[\s,;:.—–-]*(?:(?:but|and|where|when|while|whereas|although|though|however)\b[\s,]*)?"
BE = (
    r"(?:\s+(?:have\s+)?(?:to\s+)?(?:be(?:en)?|return(?:ed)?|give(?:n)?|yield(?:ed)?|equal(?:led)?|produced?|print(?:ed)?"
    r"|raised?|show(?:n|ed)?))?"
)
SHOULD = (
    r"(?:(?:it|that|this|which|the\s+(?:result|answer|output))\s+)?"
    rf"(?:should|must|ought\s+to|(?:is|was)\s+(?:supposed|expected)\s+to|would){BE}:?"
)
EXPECTED = (
    r"(?:(?:I|we)\s+)?(?:(?:was|were|am|is)\s+)?expect(?:ed|ing|s)?(?:\s+(?:it|that))?(?:\s+to\s+\w+)?"
    r"(?:\s+(?:is|was|value|result))?:?"
)
INSTEAD = r"(?:instead\s+of|rather\s+than|in\s+place\s+of|not)"
END = r"(?=\s*(?:[.!;](?:\s|$)|,\s+[A-Za-z]|\s[—–-]\s|$))"
TOBE = r"to\s+(?:be|return|give|equal|yield)|=="
GOT_VALUE = r"\s+(?P<got>\S.{0,200}?)"
WANTED_VALUE = r"\s+(?P<wanted>\S.{0,200}?)"
PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^\s*{GIVES}{GOT_VALUE}{LINK}(?:\b{SHOULD}|\b{EXPECTED}|\b{INSTEAD}){WANTED_VALUE}{END}",
        rf"^\s*(?:{SHOULD}|{TOBE}){WANTED_VALUE}{LINK}(?:\b{INSTEAD}|\b{GOT}){GOT_VALUE}{END}",
        rf"^\s*{GIVES}{GOT_VALUE}{LINK}{WANTED_VALUE}\s+(?:is|was)\s+(?:expected|wanted|right|correct)\b",
    )
)
WORDS = {
    "nothing": "None",
    "none": "None",
    "true": "True",
    "false": "False",
    "zero": "0",
    "an empty list": "[]",
    "an empty string": "''",
    "an empty tuple": "()",
    "an empty dict": "{}",
    "an empty dictionary": "{}",
    "an empty set": "set()",
}
MAX_WORDS = 6


@dataclass(frozen=True, slots=True)
class Told:
    """A value as a message writes it; `literal` is a Python expression, "" when the value is known by its text alone."""

    text: str
    literal: str


@dataclass(frozen=True, slots=True)
class Saying:
    """`call` is a Python expression that gives `got` (a value, or the name of an exception) and should give `wanted`."""

    call: str
    got: Told
    wanted: Told

    @property
    def name(self) -> str:
        """The function or class that is called first, without its module."""
        return self.call.partition("(")[0].rpartition(".")[2]


def sayings(text: str) -> tuple[Saying, ...]:
    """All that `text` says in so many words, at most MAX_SAYINGS; what can be read in two ways is left out."""
    found: list[Saying] = []
    position = 0
    while len(found) < MAX_SAYINGS and (begin := CALL.search(text, position)) is not None:
        call = call_at(text, begin.start())
        position = begin.start() + len(call) if call else begin.end()
        saying = said_of(call, text[position : position + REST_CHARS]) if call else None
        if saying is not None and saying not in found:
            found.append(saying)
    return tuple(found)


def call_at(text: str, start: int) -> str:
    """The Python expression that begins there with a call, methods and items of its result included; "" when it is none."""
    found = ""
    for position in range(start, min(len(text), start + MAX_CALL_CHARS)):
        if text[position] not in ")]":
            continue
        candidate = text[start : position + 1]
        if found and text[start + len(found)] not in ".[(":
            break
        try:
            parsed = ast.parse(candidate, mode="eval").body
        except (SyntaxError, ValueError):
            continue
        if isinstance(parsed, ast.Call | ast.Subscript):
            found = candidate
    attribute = ATTRIBUTE.match(text, start + len(found)) if found else None
    return found + attribute[0] if attribute is not None else found


def said_of(call: str, rest: str) -> Saying | None:
    """What `rest`, the text after the call, says of it."""
    line = " ".join(rest.lstrip("`'\"").split())
    if rest.lstrip("`").startswith("\n"):
        line = f"gives {line}"  # as an interpreter shows it: the value on the next line
    for pattern in PATTERNS:
        match = pattern.match(line)
        if match is None:
            continue
        got = told(match["got"])
        wanted = told(match["wanted"], like=got)
        if got is not None and wanted is not None and got != wanted:
            return Saying(call, got, wanted)
    return None


def told(text: str, like: Told | None = None) -> Told | None:
    """The value that `text` writes; what follows a value is not taken for a part of it when it is not `like` that."""
    bare = text.strip().strip("`").rstrip(".,;:").strip().strip("`")
    literal = WORDS.get(bare.lower(), "") or literal_in(bare)
    if literal:
        return Told(bare, literal)
    words = bare.split()
    if like is not None:
        if like.literal and not like.literal.startswith(("'", '"')):
            return first_literal(bare)
        words = words[: len(like.text.split())]
    if not words or len(words) > MAX_WORDS or "(" in bare or words[0].lower() in {"a", "an", "the", "some", "no", "every", "all"}:
        return None
    return Told(" ".join(words).rstrip(".,;:"), "")


def first_literal(text: str) -> Told | None:
    """The longest beginning of `text`, to the end of a word, that is a literal."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    for end in reversed(ends):
        candidate = text[:end].rstrip(".,;:")
        if literal := literal_in(candidate):
            return Told(candidate, literal)
    return None


def literal_in(text: str) -> str:
    """`text` when it is a Python literal, else ""."""
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return ""
    return text
