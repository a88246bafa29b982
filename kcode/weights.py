"""Which part of a conversation holds how many tokens of the context."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kcode.context import CHARS_PER_TOKEN, IMAGE_TOKENS
from kcode.messages import Image, Message, Part, Text, Thinking, ToolCall
from kcode.model import ChatModel, TextCounter, ToolSpec
from kcode.turn import Fill

Kind = Literal["system", "tools", "instructions", "user", "answers", "thinking", "calls", "results", "marks"]
WORDS: dict[Kind, str] = {
    "system": "system prompt",
    "tools": "tools",
    "instructions": "instructions (AGENTS.md)",
    "user": "your messages",
    "answers": "answers",
    "thinking": "thinking",
    "calls": "calls",
    "results": "tool results",
    "marks": "marks between messages",
}
HEAVY = 5
# What instructions.py puts between the instructions and the user's first words.
INSTRUCTIONS_END = "\n\n---\n"
INSTRUCTIONS_START = "Instructions for work in this folder"


@dataclass(frozen=True, slots=True)
class Piece:
    """A text of the conversation and what it is; `label` names it for a person. `tokens` are estimated until counted."""

    kind: Kind
    label: str
    text: str
    tokens: int


def pieces_of(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Piece]:
    """All that the model reads, less the marks between messages."""
    pieces = [_piece("tools", tool.name, f"{tool.name}\n{tool.description}\n{json.dumps(dict(tool.schema))}") for tool in tools]
    calls = {call.id: call for message in messages for call in message.calls}
    for message in messages:
        for part in message.parts:
            pieces += _pieces_of(message, part, calls)
    return pieces


def scaled(pieces: Sequence[Piece], total: int) -> list[Piece]:
    """The estimates brought to a known total."""
    guessed = sum(piece.tokens for piece in pieces)
    return [replace(piece, tokens=round(piece.tokens * total / guessed)) for piece in pieces] if guessed else list(pieces)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What the next prompt is made of: tokens by kind, those of nothing left out; `marks` stand between the messages.

    `tokens` is the whole. Unless `is_exact` all are estimates, brought to the whole where the model has told that. `limit` is the
    context's, None when nobody knows it. `heavy` are the heaviest single pieces.
    """

    tokens: int
    limit: int | None
    is_exact: bool
    kinds: tuple[tuple[Kind, int], ...]
    heavy: tuple[Piece, ...]

    @property
    def rows(self) -> tuple[tuple[str, int], ...]:
        """Kinds in words and their tokens, what is free at the end."""
        rows = [(WORDS[kind], tokens) for kind, tokens in self.kinds if tokens]
        return (*rows, ("free", max(0, self.limit - self.tokens))) if self.limit is not None else tuple(rows)


async def weigh(model: ChatModel, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...], fill: Fill) -> Breakdown:
    """Raises what the model's counting raises."""
    pieces = pieces_of(messages, tools)
    bare = await model.count_tokens(messages) if fill.is_exact else None
    counts = await model.count_texts(tuple(piece.text for piece in pieces)) if isinstance(model, TextCounter) else None
    exact = bare is not None and counts is not None
    if bare is not None and counts is not None:
        # How a model is told of the tools is its own affair, so they are weighed by leaving them out.
        declared = scaled([piece for piece in pieces if piece.kind == "tools"], fill.tokens - bare)
        counted = zip(pieces, counts, strict=True)
        pieces = declared + [replace(piece, tokens=count) for piece, count in counted if piece.kind != "tools"]
    else:
        pieces = scaled(pieces, fill.tokens)
    sums: dict[Kind, int] = {kind: sum(piece.tokens for piece in pieces if piece.kind == kind) for kind in WORDS}
    sums["marks"] = max(0, fill.tokens - sum(sums.values()))
    return Breakdown(fill.tokens, fill.limit, exact, tuple(sums.items()), tuple(heaviest(pieces, HEAVY)))


def heaviest(pieces: Sequence[Piece], count: int) -> list[Piece]:
    return sorted(pieces, key=lambda piece: -piece.tokens)[:count]


def _pieces_of(message: Message, part: Part, calls: dict[str, ToolCall]) -> list[Piece]:
    if isinstance(part, Image):
        return [Piece("user", "a picture", "", IMAGE_TOKENS)]
    if isinstance(part, Thinking):
        return [_piece("thinking", "thinking", part.text)]
    if isinstance(part, ToolCall):
        return [_piece("calls", f"call of {part.name}", f"{part.name}{part.arguments}")]
    if not isinstance(part, Text):
        call = calls.get(part.call_id)
        label = f"result of {part.name}{f' {_short(call.arguments)}' if call is not None else ''}"
        piece = _piece("results", label, part.text)
        return [replace(piece, tokens=piece.tokens + IMAGE_TOKENS * len(part.images))]
    if message.role == "system":
        return [_piece("system", "system prompt", part.text)]
    if message.role == "assistant":
        return [_piece("answers", "answer", part.text)]
    instructions, mark, said = part.text.partition(INSTRUCTIONS_END)
    if mark and instructions.startswith(INSTRUCTIONS_START):
        return [_piece("instructions", "AGENTS.md", instructions), _piece("user", f"message {_short(said)!r}", said)]
    return [_piece("user", f"message {_short(part.text)!r}", part.text)]


def _piece(kind: Kind, label: str, text: str) -> Piece:
    return Piece(kind, label, text, len(text) // CHARS_PER_TOKEN + 1)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
