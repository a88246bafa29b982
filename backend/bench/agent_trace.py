"""A recorded agent session as a file: what was declared and said, step by step. `kcode_bench.record_trace` makes such files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

Json = dict[str, object]

DEFAULT = Path(__file__).with_name("traces") / "bugfix.json"


class _Function(BaseModel):
    name: str
    arguments: str


class _Call(BaseModel):
    function: _Function


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "user", "assistant", "tool"]
    tool_calls: list[_Call] = []


class _Edit(BaseModel):
    """Arguments of str_replace."""

    path: str
    old: str
    new: str


class _File(BaseModel):
    format: Literal[1]
    files: dict[str, str]
    tools: list[Json]
    messages: list[Json]
    answer_tokens: list[int]


@dataclass(frozen=True, slots=True)
class Step:
    """One model call: `answer_tokens` were written, `results` came back as tool messages (none after the last step).

    `draft` is what a client that knows the files can offer beforehand: the text of the file that the answer edits, or "".
    """

    answer_tokens: int
    draft: str
    results: list[Json] = field(default_factory=list[Json])


@dataclass(frozen=True, slots=True)
class AgentTrace:
    """`head` is what the first step sees: the system text and the user's request."""

    tools: tuple[Json, ...]
    head: tuple[Json, ...]
    steps: tuple[Step, ...]


def read_trace(path: Path) -> AgentTrace:
    """Raises ValueError saying what is wrong with the file."""
    try:
        data = _File.model_validate_json(path.read_bytes())
        typed = [_Message.model_validate(message) for message in data.messages]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    answers = sum(1 for message in typed if message.role == "assistant")
    if answers != len(data.answer_tokens):
        raise ValueError(f"{path}: {answers} answers and {len(data.answer_tokens)} answer lengths")
    head: list[Json] = []
    steps: list[Step] = []
    for message, raw in zip(typed, data.messages, strict=True):
        if message.role == "assistant":
            steps.append(Step(data.answer_tokens[len(steps)], _draft(message, data.files)))
        elif message.role == "tool" and steps:
            steps[-1].results.append(raw)
        elif not steps:
            head.append(raw)
        else:
            raise ValueError(f"{path}: a message of role {message.role} after the first answer")
    return AgentTrace(tuple(data.tools), tuple(head), tuple(steps))


def _draft(answer: _Message, files: dict[str, str]) -> str:
    """The text of the file that `answer` edits, which is changed in `files` as the answer says."""
    for call in answer.tool_calls:
        if call.function.name == "str_replace":
            edit = _Edit.model_validate(json.loads(call.function.arguments))
            before = files.get(edit.path, "")
            files[edit.path] = before.replace(edit.old, edit.new, 1)
            return before
    return ""
