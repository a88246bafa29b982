"""The line of the transcript that tells of a compaction."""

from __future__ import annotations

from kcode.events import NoteAuthor
from kcode.tui.blocks import Remark


def compaction_line(before_tokens: int, after_tokens: int, by: NoteAuthor) -> Remark:
    author = "" if by == "model" else ", from a note that kcode wrote"
    told = f"context compacted: {before_tokens:,} tokens became {after_tokens:,}{author}"
    return Remark("⇣", told, "accent")
