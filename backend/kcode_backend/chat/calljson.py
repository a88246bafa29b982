"""Reading `{"name": ..., "arguments": {...}}` while it is being written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)', re.DOTALL)


class ObjectEnd:
    """Finds where a JSON object ends, however its text is cut into pieces. The text starts with the opening brace."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> int | None:
        """The length of `text` that still belongs to the object when it ends in it, else None."""
        for at, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                if char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None


@dataclass(frozen=True, slots=True)
class ReadCall:
    """A whole call; `arguments` is JSON text of an object."""

    name: str
    arguments: str


def read_call(text: str) -> ReadCall | None:
    """The call in a finished text, whatever the order of its keys; None when it is none."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (json.JSONDecodeError, RecursionError):
            return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ReadCall(name, json.dumps(arguments, ensure_ascii=False))


class CallReader:
    """Streams the arguments of one call as raw text. `name` is set once it is known."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.text = ""
        """All text pushed so far."""
        self._end = ObjectEnd()
        self._state: Literal["head", "arguments", "after"] = "head"

    def push(self, text: str) -> str:
        """The part of the arguments that this text adds."""
        self.text += text
        if self._state == "after":
            return ""
        if self._state == "head":
            head = _HEAD.match(self.text)
            if head is None:
                return ""
            name = json.loads(head.group(1), strict=False)
            self.name = str(name)
            self._state = "arguments"
            text = self.text[head.end() :]
        end = self._end.push(text)
        if end is None:
            return text
        self._state = "after"
        return text[:end]


Opening = Literal["no", "maybe", "yes"]
_FENCE = "```"
_LANGUAGES = ("", "json", "xml", "tool_call")
_KEY = '"name"'


def opens_call(held: str) -> Opening:
    """Whether text at the start of a line begins a bare or fenced call; "maybe" while too little of it is known."""
    body = held.lstrip(" \t")
    if _FENCE.startswith(body):
        return "maybe"
    if body.startswith(_FENCE):
        language, newline, body = body[len(_FENCE) :].partition("\n")
        language = language.strip()
        if not newline:
            return "maybe" if any(known.startswith(language) for known in _LANGUAGES) else "no"
        if language not in _LANGUAGES:
            return "no"
        body = body.lstrip()
    if not body:
        return "maybe"
    if body[0] != "{":
        return "no"
    key = body[1:].lstrip()
    if key.startswith(_KEY):
        return "yes"
    return "maybe" if _KEY.startswith(key) else "no"
