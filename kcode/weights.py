"""Which part of a conversation holds how many tokens of the context."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kcode.context import CHARS_PER_TOKEN, IMAGE_TOKENS
from kcode.messages import Image, Message, Part, Text, Thinking, ToolCall
from kcode.model import ToolSpec

Kind = Literal["system", "tools", "instructions", "user", "answers", "thinking", "calls", "results"]
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
