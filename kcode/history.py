"""Going back in a session and forward again, files and conversation together."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kcode.checkpoint import Checkpoints
from kcode.context import Context
from kcode.errors import CheckpointFailed
from kcode.export import format_of, write_export
from kcode.messages import Message
from kcode.three_way import TakenBack
from kcode.transcript import Checkpoint, Record, Redone, Rewind, Said, Transcript, Turn, fork
from kcode.turn import Tree

log = logging.getLogger(__name__)

TITLE_CHARS = 80


@dataclass(frozen=True, slots=True)
class Point:
    """A place to go back to: before a user message, or before a step of the model. `mark` names it."""

    mark: int
    kind: Literal["turn", "step"]
    title: str


@dataclass(frozen=True, slots=True)
class _Work:
    """What one turn, or the end of one, did to the files: the tree before and after it."""

    before: str
    after: str


class History:
    """The past of one session. Nothing here is called while a turn runs, except `settle` at its end.

    Only what kcode's turns did is taken back. What the user did to the same files since is merged, and where that is not
    possible a file stays as the user left it and is named.
    """

    def __init__(self, transcript: Transcript, context: Context, tree: Tree | None) -> None:
        self._transcript = transcript
        self._context = context
        self._tree = tree

    def points(self) -> list[Point]:
        """Where one can go back to, the latest first."""
        found: list[Point] = []
        for number, record in self._transcript.numbered:
            if isinstance(record, Turn):
                found.append(Point(number, "turn", _line(record.text)))
            elif isinstance(record, Said) and record.message.role == "assistant" and record.message.calls:
                found.append(Point(number, "step", _line(_calls_of(record.message))))
        return found[::-1]

    async def diff(self, *, last_turn: bool = False) -> str:
        """What differs from before the session (or its last turn), as a unified diff; "" for nothing."""
        turns = [number for number, record in self._transcript.numbered if isinstance(record, Turn)]
        found = (_first_snapshot(self._transcript.records, turn) for turn in (turns[-1:] if last_turn else turns))
        first = next((snapshot for snapshot in found if snapshot), "")
        return await self._tree.diff(first) if self._tree is not None and first else ""

    async def settle(self) -> None:
        """Keep the tree as the turn left it, where the turn may have written: what differs later is the user's own."""
        try:
            await self._settle()
        except CheckpointFailed as error:
            log.debug("the end of the turn was not snapshotted: %s", error)

    async def undo(self) -> str:
        """Take the last turn back; one line that says what was done."""
        turns = [number for number, record in self._transcript.numbered if isinstance(record, Turn)]
        return await self.rewind(turns[-1]) if turns else "there is no turn to take back"

    async def rewind(self, mark: int) -> str:
        """Go back to the point with that mark; one line that says what was done. Raises CheckpointFailed, and nothing is done."""
        record = self._transcript.records[mark]
        said = record.text if isinstance(record, Turn) else _calls_of(record.message) if isinstance(record, Said) else ""
        await self._settle()
        works = _works(self._transcript, mark)
        restored = await self._restore([(work.after, work.before) for work in reversed(works)])
        begun = _begun_turn(self._transcript, mark)
        self._context.rewind(mark, by_user=True)
        if begun:
            # What is left of that turn ended with this tree.
            self._context.add_checkpoint(begun, after=True)
        return f"took back {_line(said)!r}: {_told(restored)}"

    async def redo(self) -> str:
        """Undo the last rewind, unless something was said since; one line that says what was done."""
        number = _undone(self._transcript.records)
        if not number:
            return "there is nothing to bring back"
        rewind = self._transcript.records[number]
        assert isinstance(rewind, Rewind)
        works = _works(self._transcript, rewind.mark, number)
        restored = await self._restore([(work.before, work.after) for work in works])
        self._context.redo(number)
        return f"brought back what was taken back: {_told(restored)}"

    def fork(self) -> str:
        """A new session with everything of this one; its id. Both go on from here, over the same files."""
        return fork(self._transcript.path).stem

    def export(self, path: Path) -> str:
        """Write the session to `path` in the format that its ending names; one line that says so. Raises StartError."""
        path = path.expanduser()
        write_export(self._transcript.active, path, format_of(path))
        return f"written to {path}"

    async def _settle(self) -> None:
        last = next((item for item in reversed(self._transcript.active) if isinstance(item, Checkpoint | Turn)), None)
        if isinstance(self._tree, Checkpoints) and isinstance(last, Checkpoint) and not last.after:
            self._context.add_checkpoint(await self._tree.snapshot(), after=True)

    async def _restore(self, changes: list[tuple[str, str]]) -> TakenBack:
        if self._tree is None or not changes:
            return TakenBack()
        if not isinstance(self._tree, Checkpoints):
            raise CheckpointFailed("a session over a copy of the workspace cannot go back; rewind the session it came from")
        return await self._tree.change_back(changes)


def _works(transcript: Transcript, mark: int, until: int | None = None) -> list[_Work]:
    """What was done to the files from record `mark` on, oldest first, as of record `until` (now)."""
    works: dict[int, _Work] = {}
    turn = 0
    for number, record in transcript.numbered_until(until):
        if isinstance(record, Turn):
            turn = number
        elif isinstance(record, Checkpoint) and record.after and number > mark:
            before = _first_snapshot(transcript.records, max(turn, mark))
            if before:
                works[turn] = _Work(before, record.snapshot)
    return list(works.values())


def _begun_turn(transcript: Transcript, mark: int) -> str:
    """The tree at a mark within a turn that wrote something, "" for any other mark."""
    if isinstance(transcript.records[mark], Turn):
        return ""
    for number, record in transcript.numbered:
        if number > mark and isinstance(record, Turn):
            break
        if number > mark and isinstance(record, Checkpoint):
            return record.snapshot
    return ""


def _first_snapshot(records: Sequence[Record], mark: int) -> str:
    """The tree before the first writing call after that record and within its turn, "" for none.

    Attempts that were taken back within the turn count.
    """
    for record in records[mark + 1 :]:
        if isinstance(record, Turn):
            break
        if isinstance(record, Checkpoint) and not record.after:
            return record.snapshot
    return ""


def _undone(records: Sequence[Record]) -> int:
    """The number of the Rewind that can be taken back; 0 for none."""
    open_rewinds: list[int] = []
    for number, record in enumerate(records):
        if isinstance(record, Turn):
            open_rewinds = []
        elif isinstance(record, Redone):
            open_rewinds.remove(record.rewind)
        elif isinstance(record, Rewind) and record.by_user:
            open_rewinds.append(number)
    return open_rewinds[-1] if open_rewinds else 0


def _line(text: str) -> str:
    return " ".join(text.split())[:TITLE_CHARS]


def _calls_of(message: Message) -> str:
    """The calls of an answer in one line."""
    return ", ".join(f"{call.name} {_first_argument(call.arguments)}".strip() for call in message.calls)


def _first_argument(arguments: str) -> str:
    try:
        value = json.loads(arguments)
    except ValueError:
        return ""
    return str(next(iter(value.values()), "")) if isinstance(value, dict) else ""


def _told(restored: TakenBack) -> str:
    if not (restored.changed or restored.conflicts):
        return "it changed no files"
    told = f"{len(restored.changed)} files changed accordingly"
    if restored.merged:
        told += f"; your own changes since are kept in {', '.join(restored.merged)}"
    if restored.conflicts:
        told += f"; left as you have them now, since they cannot be merged: {', '.join(restored.conflicts)}"
    return told
