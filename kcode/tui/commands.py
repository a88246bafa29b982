"""The commands that begin with a slash."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """`name` without the slash; the chat screen has a method `do_NAME`."""

    name: str
    summary: str


COMMANDS = (
    Command("help", "keys and commands"),
    Command("model", "choose or fetch a model"),
    Command("new", "start a new conversation"),
    Command("resume", "go on with an earlier conversation"),
    Command("context", "what fills the context"),
    Command("stats", "what it cost so far: tokens of each step, calls and their time"),
    Command("compact", "begin anew from a note; say what to keep after it"),
    Command("copy", "the last answer to the clipboard"),
    Command("diff", "what changed in this conversation"),
    Command("undo", "take back the last turn and its changes"),
    Command("rewind", "go back to before a message or a step, files included"),
    Command("redo", "bring back what was taken back last"),
    Command("fork", "go on in a copy of this conversation"),
    Command("export", "write the conversation to PATH: .md, .html, or .json (ATIF)"),
    Command("agents", "how the sub-agents stand, and stop one"),
    Command("skills", "the skills that a model is told of, yours and this folder's"),
    Command("violations", "what the sandbox stopped"),
    Command("trust", "let this folder's own configuration count"),
    Command("quit", "leave"),
)
KEYS = (
    ("Enter", "send; while kcode works the message waits its turn"),
    ("Shift+Enter, Ctrl+J", "new line"),
    ("@", "name a file: a few letters of its path, Tab or Enter takes it"),
    ("!", "run a command in the sandbox yourself; the model reads of it with your next message"),
    ("Up, Down", "earlier messages"),
    ("Ctrl+R", "search earlier messages"),
    ("Ctrl+G", "write the message in $VISUAL or $EDITOR"),
    ("Ctrl+T", "show or hide the model's to-dos"),
    ("Esc", "interrupt"),
    ("Esc Esc", "go back to before a message or a step, when nothing is typed (/rewind)"),
    ("Ctrl+C", "interrupt; twice to leave"),
    ("Ctrl+D", "leave, when nothing is typed"),
    ("Shift+Tab", "plan (only reading), ask (before changes), auto (whatever the sandbox allows)"),
    ("Ctrl+O", "unfold or fold all results"),
    ("Tab", "walk the transcript: Up, Down, Enter unfolds, Esc returns"),
    ("PgUp, PgDn", "scroll"),
)


def matching(typed: str, custom: Iterable[Command] = ()) -> list[Command]:
    """The commands that `typed` may become, kcode's own first; none once it is no single word beginning with a slash."""
    if not typed.startswith("/") or any(character.isspace() for character in typed):
        return []
    # What is written out whole is sent by Enter, not completed.
    others = [command for command in custom if typed != f"/{command.name}"]
    return [command for command in (*COMMANDS, *others) if command.name.startswith(typed[1:].lower())]


def parsed(text: str) -> Command | None:
    """The command that a sent text is, or None. A slash followed by another (a path) is no command."""
    word = text.split(maxsplit=1)[0] if text.split() else ""
    return next((command for command in COMMANDS if f"/{command.name}" == word.lower()), None)


def own_command(text: str) -> str:
    """The command that a message beginning with `!` runs; "" for any other message."""
    return text[1:].strip() if text.startswith("!") else ""


def looks_like_command(text: str) -> bool:
    """ "/hepl" does, "/usr/bin/env fails" does not."""
    word = text.split(maxsplit=1)[0] if text.split() else ""
    return word.startswith("/") and word[1:].isalpha() and text.strip() == word
