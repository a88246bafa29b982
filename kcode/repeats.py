"""Notices that a model goes in circles: the same call with the same result, again and again."""

from __future__ import annotations

import json
from collections import deque

from kcode.messages import ToolCall

WINDOW_CALLS = 24
HINT_AT = 3
REDIRECT_AT = 5
STOP_AT = 8


def _canonical(arguments: str) -> str:
    """The arguments without differences of spacing and key order."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return arguments.strip()


class Repeats:
    """The last calls of one turn. A call that changed files starts afresh: the same test may then fail the same way."""

    def __init__(self) -> None:
        self._seen: deque[tuple[str, str, str]] = deque(maxlen=WINDOW_CALLS)

    def count(self, call: ToolCall, text: str, *, changed_files: bool) -> int:
        """How often this call with this result was seen, this one included."""
        if changed_files:
            self._seen.clear()
        key = (call.name, _canonical(call.arguments), text)
        self._seen.append(key)
        return sum(1 for seen in self._seen if seen == key)


def advice(count: int, name: str) -> str:
    """What is added to the result of a repeated call; "" when nothing is."""
    if count == HINT_AT:
        return f"\n[You have made this {name} call {count} times with the same result. The result will not change by itself.]"
    if count >= REDIRECT_AT:
        return (
            f"\n[This {name} call has now given the same result {count} times. Do something else: read a different file, "
            "search for another name, change the code, or finish and say what is in the way.]"
        )
    return ""
