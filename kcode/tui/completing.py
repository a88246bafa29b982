"""What fits what is typed: commands, files after an "@", earlier messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kcode.tui.commands import COMMANDS, Command, matching
from kcode.tui.file_index import FileIndex
from kcode.tui.history import History

SHOWN = 8
AT = re.compile(r"(?:^|(?<=\s))@([^\s@]*)$")
Kind = Literal["command", "own", "file", "message"]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`text` takes the place of all that is typed, a file's that of `replaces` characters before the cursor.

    An "own" command is kcode's and can be run as it is.
    """

    kind: Kind
    label: str
    note: str
    text: str
    replaces: int = 0


def commands_for(typed: str, custom: Iterable[Command]) -> list[Suggestion]:
    return [
        Suggestion("own", f"/{command.name}", command.summary, f"/{command.name}")
        if command in COMMANDS
        else Suggestion("command", f"/{command.name}", command.summary, f"/{command.name} ")
        for command in matching(typed, custom)
    ]


def word_after_at(before: str) -> str | None:
    """What is typed of a file's path, `before` being the text up to the cursor; None where none is named."""
    found = AT.search(before)
    return found.group(1) if found else None


def files_for(before: str, index: FileIndex) -> list[Suggestion]:
    word = word_after_at(before)
    if word is None:
        return []
    return [Suggestion("file", path, "", f"{path} ", len(word) + 1) for path in index.find(word, SHOWN)]


def messages_for(typed: str, history: History) -> list[Suggestion]:
    """Earlier messages that contain it, the last first."""
    return [Suggestion("message", text, "", text) for text in history.containing(typed, SHOWN)]
