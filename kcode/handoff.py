"""What a conversation hands to the one that takes its place when it has become too long. Pure functions over its records.

The new conversation is: the head, every message of the user in its own words, and a handoff: the note, the to-dos and the changed
files. Instructions (AGENTS.md) stand in the first message of the user, so they stay as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from kcode.events import DiffDisplay
from kcode.hints import is_hint
from kcode.messages import Message, ToolCall, ToolResult, user
from kcode.transcript import Answered, Compacted, Record, Said, Turn

MAX_CHANGED = 100
MAX_RESULT_CHARS = 160
MAX_ARGUMENT_CHARS = 200
HEAD = (
    "[The conversation had become too long for your context, so it begins anew here. Above are the user's messages, in order and "
    "complete. You have the same tools and files. Here is what you need to go on; do not repeat what is done.]"
)
NO_NOTE = "kcode wrote this from your last calls, since no note of your own could be had. Look at the files before you go on."


def since_compaction(records: Sequence[Record]) -> Sequence[Record]:
    """The records from the last compaction on, that one included."""
    last = max((number for number, record in enumerate(records) if isinstance(record, Compacted)), default=0)
    return records[last:]


def kept_messages(records: Sequence[Record], *, in_short: bool) -> list[Message]:
    """The head and what the user said. `in_short`: of a message made around the user's words, only these are kept."""
    kept: list[Message] = []
    turn = ""
    for record in since_compaction(records):
        if isinstance(record, Compacted):
            kept += record.messages[:-1]
        elif isinstance(record, Turn):
            turn = record.text
        elif isinstance(record, Said) and record.message.role in ("system", "user") and not is_hint(record.message):
            message = record.message
            if in_short and turn and turn in message.text:
                message = user(turn)
            if not (in_short and message in kept):
                kept.append(message)
    return kept


def last_todos(records: Sequence[Record]) -> str:
    """The to-do list as it was last written, "" for none."""
    for record in reversed(since_compaction(records)):
        if isinstance(record, Compacted):
            return record.todos
        if isinstance(record, Answered) and record.result.name.endswith("todo") and not record.result.is_error:
            lines = record.result.text.splitlines()
            return "\n".join(line for line in lines if line.startswith(("[ ] ", "[>] ", "[x] ")))
    return ""


def changed_files(records: Sequence[Record], patch: str) -> tuple[str, ...]:
    """Files that edits of this conversation changed, and those of `patch`, a unified diff of the tree since it began."""
    edited = [
        record.display.path for record in records if isinstance(record, Answered) and isinstance(record.display, DiffDisplay)
    ]
    heads = [line[4:].split("\t")[0] for line in patch.splitlines() if line.startswith(("--- a/", "+++ b/"))]
    return tuple(sorted({*edited, *(head[2:] for head in heads)}))


def answers_between(records: Sequence[Record]) -> list[int]:
    """How many answers the model gave after each compaction, before the next one or until now."""
    spans: list[int] = []
    for record in records:
        if isinstance(record, Compacted):
            spans.append(0)
        elif spans and isinstance(record, Said) and record.message.role == "assistant":
            spans[-1] += 1
    return spans


def handoff(note: str, todos: str, changed: Sequence[str]) -> Message:
    """The last message of the new conversation's beginning."""
    parts = [HEAD, note.strip()]
    if todos:
        parts.append(f"To-do list:\n{todos}")
    if changed:
        listed = list(changed[:MAX_CHANGED])
        more = f"\n… and {len(changed) - MAX_CHANGED} more" if len(changed) > MAX_CHANGED else ""
        parts.append("Files that differ from when the session began:\n" + "\n".join(listed) + more)
    return user("\n\n".join(parts))


def previous_note(records: Sequence[Record]) -> str:
    """The note of the handoff before this one, "" for none: what a note that no model writes would otherwise lose."""
    first = next(iter(since_compaction(records)), None)
    return first.note if isinstance(first, Compacted) else ""


def mechanical_note(messages: Sequence[Message], max_chars: int) -> str:
    """What the model said and did in `messages`, the latest that fits, one line for each answer and each call."""
    results = {result.call_id: result for message in messages for result in message.results}
    lines: list[str] = []
    for message in messages:
        if message.role == "assistant":
            said = " ".join(message.text.split())
            lines += [f"- You said: {_cut(said, 2 * MAX_RESULT_CHARS)}"] if said else []
            lines += [_call_line(call, results.get(call.id)) for call in message.calls]
    kept: list[str] = []
    room = max_chars
    for line in reversed(lines):
        room -= len(line) + 1
        if room < 0:
            kept.append(f"- … {len(lines) - len(kept)} earlier entries are left out")
            break
        kept.append(line)
    return "\n".join(reversed(kept))


def _call_line(call: ToolCall, result: ToolResult | None) -> str:
    try:
        arguments = json.dumps(json.loads(call.arguments or "{}"), ensure_ascii=False)
    except ValueError:
        arguments = call.arguments
    if result is None:
        came = "no result"
    else:
        text = " ".join(result.text.split())
        came = f"{'failed: ' if result.is_error else ''}{_cut(text, MAX_RESULT_CHARS)}"
    return f"- {call.name} {_cut(arguments, MAX_ARGUMENT_CHARS)} → {came}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
