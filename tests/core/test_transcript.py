"""What is on disk, and what comes back from it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from kcode.context import ORPHAN_TEXT, Context
from kcode.errors import StartError
from kcode.events import DiffDisplay, PlainDisplay, TestsDisplay
from kcode.messages import Image, Message, Text, Thinking, ToolCall, ToolResult, system, user
from kcode.model import Usage
from kcode.transcript import (
    Answered,
    Checkpoint,
    Header,
    Opened,
    Record,
    Redone,
    Rewind,
    Said,
    Transcript,
    Turn,
    TurnEnd,
    create,
    decode,
    encode,
    find_session,
    list_sessions,
    open_existing,
)
from tests.core.conftest import Open, call, collect

ASSISTANT = Message(
    "assistant",
    (Thinking("so"), Text("é\ud800 \u2028"), ToolCall("functions.read:0", "read", '{"path": "a" }')),
    (1, 2, 3),
    "f00d",
)
RECORDS: list[Record] = [
    Header(1, "id", "/p", "2026-01-01T00:00:00Z", "0.1.0"),
    Opened("2026-01-01T00:00:00Z", "m", "small", "none"),
    Turn(1, "fix", "2026-01-01T00:00:00Z"),
    Said(ASSISTANT, Usage(10, 5, 2)),
    Said(Message("user", (Text("see"), Image("image/png", "aGk="))), None),
    Answered(ToolResult("functions.read:0", "read", "text", is_error=True), PlainDisplay("text"), 0.25),
    Answered(ToolResult("b", "edit", ""), DiffDisplay("a.py", "old\n", "new\n"), 1.0),
    Answered(ToolResult("c", "run_tests", ""), TestsDisplay("pytest", 3, 1, "x"), 1.0),
    Checkpoint("abc"),
    Checkpoint("abc", after=True),
    Rewind(4, by_user=True),
    Redone(10),
    TurnEnd(1, "limit", "why", "what", Usage(1, 2, 3)),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_record_survives_the_disk(record: Record) -> None:
    line = encode(record)
    assert line.count(b"\n") == 1
    assert decode(line) == record


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b'{"type":"text","text":"x"}', b'{"type":"rewind"}', b'{"type":"rewind","mark":"x"}']
)
def test_what_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(line)


def begin(tmp_path: Path) -> Transcript:
    transcript = create(tmp_path / "sessions", tmp_path, "0.1.0")
    transcript.append(Turn(1, "fix the\n bug", "2026-01-01T00:00:00Z"))
    return transcript


@pytest.mark.parametrize("cut", [1, 10, -1])
def test_torn_last_line_is_cut_off_and_nothing_else(tmp_path: Path, cut: int) -> None:
    transcript = begin(tmp_path)
    transcript.append(Said(user("kept"), None))
    kept = list(transcript.records)
    with transcript.path.open("ab") as file:
        file.write(encode(Said(user("torn"), None))[:cut])
    transcript.close()
    again = open_existing(transcript.path)
    assert again.records == kept
    again.append(Said(user("next"), None))
    again.close()
    with closing(open_existing(transcript.path)) as third:
        assert third.records == [*kept, Said(user("next"), None)]


def test_damage_in_the_middle_is_named_not_skipped(tmp_path: Path) -> None:
    transcript = begin(tmp_path)
    transcript.close()
    lines = transcript.path.read_bytes().splitlines(keepends=True)
    transcript.path.write_bytes(lines[0] + b"garbage\n" + lines[1])
    with pytest.raises(StartError, match="damaged at line 2"):
        open_existing(transcript.path)


def test_session_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    transcript = begin(tmp_path)
    transcript.close()
    later = b'{"type":"a record of tomorrow"}\n'
    transcript.path.write_bytes(encode(Header(99, "id", "/p", "t", "9")) + later)
    with pytest.raises(StartError, match="format version 99; a newer kcode wrote it, so update kcode"):
        open_existing(transcript.path)


def test_session_in_use_is_not_opened_twice(tmp_path: Path) -> None:
    transcript = begin(tmp_path)
    with pytest.raises(StartError, match="is in use by another kcode"):
        open_existing(transcript.path)
    transcript.close()
    open_existing(transcript.path).close()


def test_sessions_are_found_by_the_start_of_their_id(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    with pytest.raises(StartError, match="no session of this folder"):
        find_session(folder, "")
    transcript = begin(tmp_path)
    transcript.close()
    create(folder, tmp_path, "0.1.0").close()
    (info,) = list_sessions(folder)
    assert (info.title, info.session_id) == ("fix the bug", transcript.header.session_id)
    assert find_session(folder, info.session_id[:12]) == transcript.path
    assert find_session(folder, "") == transcript.path
    with pytest.raises(StartError, match="no session 'zzz'"):
        find_session(folder, "zzz")


def test_rewinds_nest_and_forget_only_what_came_after(tmp_path: Path) -> None:
    transcript = begin(tmp_path)
    context = Context(transcript, None)
    context.add(system("head"))
    outer = context.mark()
    context.add(user("one"))
    inner = context.mark()
    context.add(user("two"))
    context.rewind(inner)
    context.add(user("three"))
    assert [message.text for message in context.messages] == ["head", "one", "three"]
    context.rewind(outer)
    assert [message.text for message in context.messages] == ["head"]
    transcript.close()


def test_calls_without_a_result_get_one_on_opening(tmp_path: Path) -> None:
    transcript = begin(tmp_path)
    context = Context(transcript, None)
    context.add(user("go"))
    calls = (ToolCall("a", "read", "{}"), ToolCall("b", "bash", "{}"))
    context.add(Message("assistant", calls))
    context.add_result(ToolResult("a", "read", "fine"), PlainDisplay("fine"), 0.1)
    transcript.close()
    with closing(open_existing(transcript.path)) as again:
        repaired = Context(again, None).messages[-1]
    assert [(result.call_id, result.text) for result in repaired.results] == [("a", "fine"), ("b", ORPHAN_TEXT)]


async def test_resumed_session_has_the_same_messages_and_goes_on(open_session: Open) -> None:
    first = await open_session({"calls": [call("read", path="calc.py")]}, {"text": "seen"})
    await collect(first, "look")
    said = first.messages
    await first.close()
    second = await open_session({"text": "again"}, resume_id=first.id[:15])
    assert second.id == first.id
    assert second.messages == said
    await collect(second, "and now?")
    assert second.messages[: len(said)] == said
    assert len(second.messages) == len(said) + 2


async def test_every_line_on_disk_is_json_with_a_type_and_the_first_has_the_version(open_session: Open) -> None:
    session = await open_session({"calls": [call("bash", command="true")]}, {"text": "ok"})
    await collect(session, "go")
    lines = [json.loads(line) for line in session.transcript_path.read_text().splitlines()]
    kinds = [line["type"] for line in lines]
    assert kinds == [
        "header",
        "opened",
        "said",
        "turn",
        "said",
        "said",
        "checkpoint",
        "answered",
        "said",
        "checkpoint",
        "turn_end",
    ]
    assert lines[0]["version"] == 1
