"""Compaction: a conversation that has grown too long for the context begins anew from a handoff.

The model is asked for a note at the end of the conversation as it is, so the engine reads nothing twice. The new conversation is
recorded as one record; until that is written, nothing has changed. Where the model cannot write the note, kcode writes one from
the calls and their results. No message of the user is ever left out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kcode import handoff
from kcode.context import EXACTLY, Context, estimate_tokens
from kcode.errors import CheckpointFailed, ModelError
from kcode.events import ContextCompacted, NoteAuthor
from kcode.messages import Message, user
from kcode.model import Usage
from kcode.steps import Driver, Steps, reserve_tokens
from kcode.transcript import Checkpoint, Compacted
from kcode.turn import Ending, Fill, LimitReached
from kcode.weights import heaviest, pieces_of, scaled
from kcode_prompts.prompt import load

log = logging.getLogger(__name__)

COMMAND = "/compact"
ROOM_SHARE = 5
"""One part in so many of the context is kept for the next step, and in the end for the note."""
MIN_ROOM_TOKENS = 768
MAX_ROOM_TOKENS = 24_576
MAX_NOTE_TOKENS = 6_000
NOTE_CHARS_PER_TOKEN = 3
MAX_KEPT_SHARE = 0.85
"""A conversation of which more has to be kept is not compacted."""
FEW_STEPS = 3
"""Filling up again within so many steps of a compaction, twice in a row, is no progress."""
TOLD_PIECES = 3
ADVICE = "ask for less at a time (/new begins a new session), or use a model with more context"


def what_to_keep(text: str) -> str | None:
    """What a message asks to keep ("" for nothing in particular) when it is `/compact [what to keep]`; None when it is not."""
    command, _, keep = text.strip().partition(" ")
    return keep.strip() if command.lower() == COMMAND else None


def room_tokens(limit: int) -> int:
    """What must be free for a step to begin: enough for an answer, and for the note when the context is full."""
    return min(max(limit // ROOM_SHARE, min(MIN_ROOM_TOKENS, limit // 3)), MAX_ROOM_TOKENS)


class Compaction:
    """Compacts the conversation of `context`. A model `led` by a driver writes no note, and its turns need half the context."""

    def __init__(self, context: Context, *, led: bool) -> None:
        self._context = context
        self._led = led

    async def make_room(self, steps: Steps, *, refused: bool = False) -> None:
        """See Steps.make_room. `refused`: the server has refused the conversation, however much room there seems to be."""
        limit = self._context.limit_for(steps.model)
        if limit is None:
            return
        room = limit // 2 if self._led else room_tokens(limit)
        fill = await self._context.fill(steps.model, steps.specs, room)
        if (fill.fits(room) and not refused) or not self._has_history():
            return
        if self._is_in_vain(steps, fill):
            if fill.fits(reserve_tokens(limit)) and not refused:
                return
            told = self._told(steps, fill)
            raise LimitReached(f"the conversation holds {fill.words}, and compacting would free too little: {told}; {ADVICE}")
        spans = handoff.answers_between(self._context.records)
        if len(spans) > 1 and max(spans[-2:]) <= FEW_STEPS:
            raise LimitReached(
                f"the context of {limit} tokens filled up again within {FEW_STEPS} steps of its compaction, twice in a row: "
                f"{self._told(steps, fill)}; {ADVICE}"
            )
        await self._compact(steps, fill, "", is_automatic=True)

    def asked(self, keep: str) -> Driver:
        """The driver of a turn in which the user asked for it."""

        async def drive(steps: Steps, _: str) -> Ending:
            if not self._has_history():
                return Ending("finished", "there is nothing to compact yet", "There is nothing to compact yet.")
            fill = await self._context.fill(steps.model, steps.specs, EXACTLY)
            after = None if self._is_in_vain(steps, fill) else await self._compact(steps, fill, keep, is_automatic=False)
            if after is None:
                return Ending("finished", "it would not get shorter", "Not compacted: the conversation would not get shorter.")
            return Ending("finished", "compacted", f"Compacted: {fill.tokens} tokens became {after}.")

        return drive

    def _has_history(self) -> bool:
        """Whether there is anything but the head and what the user said."""
        return any(message.role == "assistant" for message in self._context.messages)

    def _is_in_vain(self, steps: Steps, fill: Fill) -> bool:
        """Whether what must be kept is nearly all there is."""
        kept = estimate_tokens(handoff.kept_messages(self._context.records, in_short=self._led), steps.specs)
        share = kept / estimate_tokens(self._context.messages, steps.specs)
        return share > MAX_KEPT_SHARE

    async def _compact(self, steps: Steps, fill: Fill, keep: str, *, is_automatic: bool) -> int | None:
        """The tokens of the next prompt; None when it would not have become shorter, and nothing was done.

        Raises LimitReached when even the new conversation leaves no room.
        """
        records = self._context.records
        note, by, usage = await self._note(steps, fill, keep)
        todos = handoff.last_todos(records)
        changed = handoff.changed_files(records, await self._patch(steps))
        messages = (*handoff.kept_messages(records, in_short=self._led), handoff.handoff(note, todos, changed))
        counted = await steps.model.count_tokens(messages, steps.specs) if fill.is_exact else None
        after = estimate_tokens(messages, steps.specs) if counted is None else counted
        new = Fill(after, fill.limit, counted is not None)
        if fill.limit is not None and not new.fits(reserve_tokens(fill.limit)):
            raise LimitReached(f"even compacted the conversation holds {new.words}: {_told(messages, steps, after)}; {ADVICE}")
        if after >= fill.tokens:
            return None
        self._context.begin_anew(Compacted(messages, by, note, todos, fill.tokens, after, usage))
        steps.tell(ContextCompacted(fill.tokens, after, by, is_automatic, note))
        return after

    async def _note(self, steps: Steps, fill: Fill, keep: str) -> tuple[str, NoteAuthor, Usage]:
        messages = self._context.messages
        note_tokens = _note_tokens(fill.limit)
        start = () if self._led else self._readable(fill, note_tokens, keep)
        written, usage = await self._ask(steps, start, note_tokens, keep) if start else ("", Usage())
        max_chars = note_tokens * NOTE_CHARS_PER_TOKEN
        if not written:
            done = handoff.mechanical_note(messages, max_chars)
            before = handoff.previous_note(self._context.records)[-max_chars // 2 :]
            return "\n\n".join(part for part in (before, handoff.NO_NOTE, done) if part), "kcode", usage
        if len(start) < len(messages):
            done = handoff.mechanical_note(messages[len(start) :], max_chars // 2)
            written += f"\n\nAfter this note was written you did:\n{done}"
        return written, "model", usage

    def _readable(self, fill: Fill, note_tokens: int, keep: str) -> tuple[Message, ...]:
        """The most of the conversation that leaves room for the request and the note."""
        needed = estimate_tokens([_request(note_tokens, keep)], ()) + note_tokens
        if fill.fits(needed) or fill.limit is None:
            return self._context.messages
        return self._context.longest_start(fill.limit - needed)

    async def _ask(self, steps: Steps, start: tuple[Message, ...], note_tokens: int, keep: str) -> tuple[str, Usage]:
        """The model's note, "" when it wrote none."""
        steps.notice("info", "compacting: the model writes a note of where things stand")
        try:
            completed = await steps.aside((*start, _request(note_tokens, keep)), note_tokens)
        except ModelError as error:
            steps.notice("warning", f"the model wrote no note, so kcode writes one from the last calls: {error}")
            return "", Usage()
        note = completed.message.text.strip()
        if not note:
            steps.notice("warning", "the model's note was empty, so kcode writes one from the last calls")
        elif completed.finish == "length":
            note += " [cut off]"
        return note, completed.usage

    async def _patch(self, steps: Steps) -> str:
        """What differs from when the session's first snapshot was taken."""
        first = next((record.snapshot for record in self._context.records if isinstance(record, Checkpoint)), "")
        try:
            return await steps.diff(first)
        except CheckpointFailed as error:
            log.warning("changed files are known from edits alone: %s", error)
            return ""

    def _told(self, steps: Steps, fill: Fill) -> str:
        return _told(self._context.messages, steps, fill.tokens)


def _told(messages: Sequence[Message], steps: Steps, total: int) -> str:
    """What holds the most tokens."""
    pieces = scaled(pieces_of(messages, steps.specs), total)
    tools = sum(piece.tokens for piece in pieces if piece.kind == "tools")
    others = [piece for piece in pieces if piece.kind != "tools"]
    parts = [f"{piece.label} holds about {piece.tokens}" for piece in heaviest(others, TOLD_PIECES)]
    return ", ".join([*parts, f"the tools' descriptions {tools}"] if tools else parts)


def _note_tokens(limit: int | None) -> int:
    """What the note may have; the words asked for are fewer, since a model counts badly and may think first."""
    return MAX_NOTE_TOKENS if limit is None else min(room_tokens(limit) // 3, MAX_NOTE_TOKENS)


def _request(note_tokens: int, keep: str) -> Message:
    text = load("compact", words=str(max(note_tokens // 3, 50)))
    return user(f"{text}\n\n{load('compact_keep', keep=keep)}" if keep else text)
