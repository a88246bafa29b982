"""The transcript: one append-only JSONL file per session, on disk before anything follows from it.

Each line is one record; the first is a Header. A record is on disk (written, flushed, synced) when `append` returns. A torn last
line, the trace of a crash while writing, is cut off when the file is opened.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kcode.checked import checked
from kcode.errors import StartError
from kcode.events import DiffDisplay, Display, NoteAuthor, PlainDisplay, TestsDisplay, TurnStatus
from kcode.messages import Image, Message, Text, Thinking, ToolCall, ToolResult
from kcode.model import Sampling, Usage

VERSION = 1


@dataclass(frozen=True, slots=True)
class Header:
    """Always the first record. Times are UTC, ISO 8601. `forked_from` is the session whose records come first, "" for none."""

    version: int
    session_id: str
    project: str
    created: str
    kcode: str
    forked_from: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """A process took the session up: at its start and at each resume. `sampling` is None in older transcripts."""

    at: str
    model: str
    profile: str
    sandbox: str
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn begins; `text` is what the user wrote."""

    turn: int
    text: str
    at: str


@dataclass(frozen=True, slots=True)
class Said:
    """A message as the model sees it, of any role but "tool"."""

    message: Message
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Answered:
    """A call's result; the results after one assistant message are one tool message."""

    result: ToolResult
    display: Display
    duration_s: float


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that the user ran; what the model is told of it is the Said that follows."""

    call: ToolCall
    result: ToolResult
    display: Display
    duration_s: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tree was snapshotted before a call that may write, or `after` the last one of a turn, a rewind or its undoing."""

    snapshot: str
    after: bool = False


@dataclass(frozen=True, slots=True)
class Rewind:
    """The model forgets every record from number `mark` on (the header is number 0)."""

    mark: int
    by_user: bool = False


@dataclass(frozen=True, slots=True)
class Redone:
    """The user's Rewind with record number `rewind` does not count any more: the conversation is as it was before it."""

    rewind: int


@dataclass(frozen=True, slots=True)
class Compacted:
    """The conversation began anew: the model sees `messages`, whose last is the handoff, and what follows this record.

    `by` says who wrote the handoff's `note`. `todos` is the to-do list as it stood ("" for none). Tokens are those of the next
    prompt, without and with the compaction; `usage` is what the note cost.
    """

    messages: tuple[Message, ...]
    by: NoteAuthor
    note: str
    todos: str
    before_tokens: int
    after_tokens: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class TurnEnd:
    turn: int
    status: TurnStatus
    reason: str
    result: str
    usage: Usage


Record = Header | Opened | Turn | Said | Answered | Ran | Checkpoint | Rewind | Redone | Compacted | TurnEnd

_TAGS: dict[str, type] = {
    "header": Header,
    "opened": Opened,
    "turn": Turn,
    "said": Said,
    "answered": Answered,
    "ran": Ran,
    "checkpoint": Checkpoint,
    "rewind": Rewind,
    "redone": Redone,
    "compacted": Compacted,
    "turn_end": TurnEnd,
    "message": Message,
    "text": Text,
    "thinking": Thinking,
    "image": Image,
    "call": ToolCall,
    "result": ToolResult,
    "usage": Usage,
    "sampling": Sampling,
    "plain": PlainDisplay,
    "diff": DiffDisplay,
    "tests": TestsDisplay,
}
_NAMES = {cls: tag for tag, cls in _TAGS.items()}


def _plain(value: object) -> object:
    """`value` as JSON data; our dataclasses become objects with a "type"."""
    tag = _NAMES.get(type(value))
    if tag is not None and dataclasses.is_dataclass(value):
        fields: dict[str, object] = {"type": tag}
        for item in dataclasses.fields(value):
            fields[item.name] = _plain(getattr(value, item.name))
        return fields
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _typed(value: object) -> object:
    """The inverse of `_plain`. Raises ValueError naming what does not fit."""
    if isinstance(value, list):
        return tuple(_typed(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {str(key): _typed(item) for key, item in value.items()}
    tag = str(fields.pop("type", ""))
    if tag not in _TAGS:
        raise ValueError(f"unknown record type {tag!r}")
    return checked(_TAGS[tag], fields)


def encode(record: Record) -> bytes:
    """One line, newline included."""
    return json.dumps(_plain(record), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def decode(line: bytes) -> Record:
    """Raises ValueError (json's errors are such) when the line is no record."""
    record = _typed(json.loads(line.decode("utf-8", "surrogatepass")))
    if isinstance(record, Record):
        return record
    raise ValueError("not a record")


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _numbered(records: Sequence[Record]) -> list[tuple[int, Record]]:
    """The records that count after all of these, with their numbers."""
    kept: list[tuple[int, Record]] = []
    before: dict[int, list[tuple[int, Record]]] = {}
    for number, record in enumerate(records):
        if isinstance(record, Rewind):
            if record.by_user:
                before[number] = kept
            kept = [(index, item) for index, item in kept if index < record.mark]
        elif isinstance(record, Redone):
            kept = list(before[record.rewind])
        else:
            kept.append((number, record))
    return kept


def active_records(records: Sequence[Record]) -> list[Record]:
    """Those that no later Rewind took back."""
    return [record for _, record in _numbered(records)]


class Transcript:
    """An open session file. One process holds it at a time (a lock on the file). Append from one thread."""

    def __init__(self, path: Path, file: BinaryIO, records: list[Record]) -> None:
        self.path = path
        self._file = file
        self._records = records

    @property
    def records(self) -> list[Record]:
        """All records so far, the header first. Read only."""
        return self._records

    @property
    def header(self) -> Header:
        header = self._records[0]
        assert isinstance(header, Header)
        return header

    @property
    def active(self) -> list[Record]:
        """The records that count: those no later Rewind took back."""
        return [record for _, record in self.numbered]

    @property
    def numbered(self) -> list[tuple[int, Record]]:
        """The active records with their numbers, which are the marks of Rewind."""
        return self.numbered_until(None)

    def numbered_until(self, end: int | None) -> list[tuple[int, Record]]:
        """What was active before record number `end` came; None is now."""
        return _numbered(self._records[:end])

    def append(self, record: Record) -> None:
        """On disk when it returns; a Checkpoint with the next record, since the snapshot it names is no sooner on disk itself."""
        self._file.write(encode(record))
        self._file.flush()
        if not isinstance(record, Checkpoint):
            os.fsync(self._file.fileno())
        self._records.append(record)

    def close(self) -> None:
        """Idempotent; gives the lock back."""
        self._file.close()


def new_session_id() -> str:
    """Sorts by time, can be typed: 20260131-235959-a1b2."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + secrets.token_hex(2)


def create(folder: Path, project: Path, kcode_version: str, session_id: str = "", name: str = "") -> Transcript:
    """A new, empty session of `project` in `folder`, which is created; its file is called as it is itself unless by `name`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    session_id = session_id or new_session_id()
    path = folder / f"{name or session_id}.jsonl"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    file = os.fdopen(descriptor, "ab")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    transcript = Transcript(path, file, [])
    transcript.append(Header(VERSION, session_id, str(project), utc_now(), kcode_version))
    return transcript


def read_records(path: Path) -> list[Record]:
    """All whole records of a session, which may be in use; a torn last line is left out. Raises StartError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StartError(f"cannot read session {path.stem}: {error.strerror}: {path}") from error
    return _decode_all(path, data[: _whole_lines(data)])


def fork(path: Path) -> Path:
    """A new session beside that one, with everything that was said and done in it. Raises StartError."""
    header, *records = read_records(path)
    assert isinstance(header, Header)
    session_id = new_session_id()
    forked = dataclasses.replace(header, version=VERSION, session_id=session_id, created=utc_now(), forked_from=header.session_id)
    target = path.with_name(f"{session_id}.jsonl")
    partial = target.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        # The numbers of the records stay, since rewinds name them.
        file.writelines(encode(record) for record in (forked, *records))
        file.flush()
        os.fsync(descriptor)
    partial.replace(target)
    return target


def open_existing(path: Path) -> Transcript:
    """Open a session to go on with it, after cutting a torn last line off. Raises StartError."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise StartError(f"cannot open session {path.stem}: {error.strerror}: {path}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise StartError(f"session {path.stem} is in use by another kcode; close that one or start a new session") from error
    try:
        data = path.read_bytes()
        whole = data[: _whole_lines(data)]
        records = _decode_all(path, whole)
    except BaseException:
        file.close()
        raise
    if len(whole) != len(data):
        file.truncate(len(whole))
    return Transcript(path, file, records)


def _whole_lines(data: bytes) -> int:
    """How many bytes of `data` are complete lines."""
    return data.rfind(b"\n") + 1


def _decode_all(path: Path, data: bytes) -> list[Record]:
    records: list[Record] = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            record = decode(line)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise StartError(f"session {path.stem} is damaged at line {number} ({reason}): {path}") from error
        if number == 1:
            # A later format may have records that cannot be read here.
            _check_header(path, record)
        records.append(record)
    if not records:
        raise StartError(f"session {path.stem} is empty: {path}")
    return records


def _check_header(path: Path, record: Record) -> None:
    if not isinstance(record, Header):
        raise StartError(f"session {path.stem} has no header: {path}")
    if record.version != VERSION:
        newer = "a newer kcode wrote it, so update kcode" if record.version > VERSION else f"this kcode reads version {VERSION}"
        raise StartError(f"session {path.stem} has format version {record.version}; {newer}: {path}")


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One line of a session picker. `title` is the start of the first thing the user said."""

    session_id: str
    project: str
    created: str
    modified: float
    title: str
    path: Path


def list_sessions(folder: Path) -> list[SessionInfo]:
    """The sessions in a project's folder that hold a turn, the last used first."""
    found: list[SessionInfo] = []
    paths = folder.glob("*.jsonl") if folder.is_dir() else iter(())
    for path in paths:
        header: Header | None = None
        for record in _head(path):
            if isinstance(record, Header):
                header = record
            elif isinstance(record, Turn) and header is not None:
                title = " ".join(record.text.split())[:80]
                modified = path.stat().st_mtime
                found.append(SessionInfo(header.session_id, header.project, header.created, modified, title, path))
                break
    return sorted(found, key=lambda info: (info.modified, info.session_id), reverse=True)


def _head(path: Path) -> Iterator[Record]:
    """The first records of a file, as far as they can be read."""
    with path.open("rb") as file:
        for _, line in zip(range(8), file, strict=False):
            try:
                yield decode(line)
            except ValueError:
                return


def find_session(folder: Path, wanted: str) -> Path:
    """The session whose id is or begins with `wanted`; "" is the last used one. Raises StartError."""
    sessions = list_sessions(folder)
    if not sessions:
        raise StartError("there is no session of this folder to continue; start one without -c or -r")
    if not wanted:
        return sessions[0].path
    matches = [info for info in sessions if info.session_id == wanted] or [
        info for info in sessions if info.session_id.startswith(wanted)
    ]
    if len(matches) == 1:
        return matches[0].path
    if not matches:
        raise StartError(f"no session {wanted!r} in this folder; see `kcode sessions list`")
    raise StartError(f"{len(matches)} sessions begin with {wanted!r}: {', '.join(info.session_id for info in matches[:5])}")
