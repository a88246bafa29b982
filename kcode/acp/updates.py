"""A session's events as the updates of the Agent Client Protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from acp import helpers
from acp.schema import (
    AgentMessageChunk,
    AgentThoughtChunk,
    ContentToolCallContent,
    FileEditToolCallContent,
    StopReason,
    ToolCallLocation,
    ToolCallProgress,
    ToolCallStart,
    ToolKind,
    UserMessageChunk,
)

from kcode.events import (
    CallFinished,
    CallOutput,
    CallStarted,
    DiffDisplay,
    Event,
    Notice,
    TextPiece,
    ThinkingPiece,
    TurnFinished,
)
from kcode.messages import Message, ToolCall
from kcode.tools.tool import Access

Update = AgentMessageChunk | AgentThoughtChunk | ToolCallStart | ToolCallProgress | UserMessageChunk
LIVE_CHARS = 8000
_SEARCHES = frozenset({"grep", "glob", "repo_map"})
_EDITS = frozenset({"create", "insert", "str_replace", "rewrite_function"})
_READS = frozenset({"read", "view_image"})


def kind_of(name: str, access: Access | None = None) -> ToolKind:
    """What an editor draws a call as; a name that is unknown here goes by its access."""
    if name in _SEARCHES:
        return "search"
    if name in _EDITS or access == "write":
        return "edit"
    if name in _READS or access == "read":
        return "read"
    if name in {"bash", "bash_input", "run_tests", "git"} or access == "execute":
        return "execute"
    return "think" if name == "todo" else "other"


def arguments_of(call: ToolCall) -> dict[str, object]:
    try:
        value = json.loads(call.arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def locations_of(call: ToolCall, workspace: Path) -> list[ToolCallLocation]:
    """The file a call names, for an editor to follow."""
    arguments = arguments_of(call)
    path = arguments.get("path")
    if not isinstance(path, str) or not path:
        return []
    line = next((arguments[name] for name in ("start", "line", "start_line") if isinstance(arguments.get(name), int)), None)
    return [ToolCallLocation(path=str(workspace / path), line=line if isinstance(line, int) and line >= 0 else None)]


def replacement_of(call: ToolCall, before: str, workspace: Path) -> list[FileEditToolCallContent]:
    """What a call that brings a whole text puts in the place of `before`, as an editor draws it; empty when it brings none."""
    arguments = arguments_of(call)
    path = arguments.get("path")
    new = next((arguments[name] for name in ("code", "content") if isinstance(arguments.get(name), str)), None)
    if not before or not isinstance(path, str) or not isinstance(new, str):
        return []
    return [helpers.tool_diff_content(str(workspace / path), new, before)]


class Updates:
    """Of one turn: live output is sent as the whole so far, as the protocol has it."""

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._live: dict[str, str] = {}

    def of(self, event: Event) -> Iterator[Update]:
        match event:
            case TextPiece(text=text):
                yield helpers.update_agent_message_text(text)
            case ThinkingPiece(text=text):
                yield helpers.update_agent_thought_text(text)
            case CallStarted(call=call, summary=summary):
                yield self.started(call, summary)
            case CallOutput(call_id=call_id, text=text):
                whole = self._live[call_id] = (self._live.get(call_id, "") + text)[-LIVE_CHARS:]
                yield helpers.update_tool_call(call_id, status="in_progress", content=[_text(whole)])
            case CallFinished(call=call):
                self._live.pop(call.id, None)
                yield self.finished(event)
            case Notice(level=level, text=text) if level != "info":
                yield helpers.update_agent_thought_text(f"[{level}] {text}\n")
            case _:
                return

    def started(self, call: ToolCall, summary: str) -> ToolCallStart:
        return helpers.start_tool_call(
            call.id,
            summary,
            kind=kind_of(call.name),
            status="in_progress",
            locations=locations_of(call, self._workspace),
            raw_input=arguments_of(call),
        )

    def finished(self, event: CallFinished) -> ToolCallProgress:
        status = "failed" if event.result.is_error else "completed"
        return helpers.update_tool_call(event.call.id, status=status, content=[self._content(event)])

    def _content(self, event: CallFinished) -> ContentToolCallContent | FileEditToolCallContent:
        display = event.display
        if isinstance(display, DiffDisplay):
            path = str(self._workspace / display.path)
            return helpers.tool_diff_content(path, display.new, display.old or None)
        return _text(display.text)


def past(messages: tuple[Message, ...]) -> Iterator[Update]:
    """An earlier conversation, to be shown again."""
    for message in messages:
        if message.role == "user" and message.text:
            yield helpers.update_user_message_text(message.text)
        if message.role == "assistant":
            if message.thinking:
                yield helpers.update_agent_thought_text(message.thinking)
            if message.text:
                yield helpers.update_agent_message_text(message.text)
            for call in message.calls:
                yield helpers.start_tool_call(call.id, call.name, kind=kind_of(call.name), raw_input=arguments_of(call))
        for result in message.results:
            status = "failed" if result.is_error else "completed"
            yield helpers.update_tool_call(result.call_id, status=status, content=[_text(result.text)])


def stop_reason(finished: TurnFinished) -> StopReason:
    if finished.status == "interrupted":
        return "cancelled"
    return "max_turn_requests" if finished.status in {"limit", "loop"} else "end_turn"


def _text(text: str) -> ContentToolCallContent:
    return helpers.tool_content(helpers.text_block(text))
