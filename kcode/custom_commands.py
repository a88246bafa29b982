"""Slash commands that the user or a repository wrote: a Markdown file each, whose text becomes the message.

`commands/NAME.md` in kcode's configuration folder, `.kcode/commands/NAME.md` in the workspace; in a subfolder `/folder:NAME`. The
user's own come before the repository's of the same name. A skill is one as well: `/NAME` asks for it by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kcode.documents import NAME, BadDocument, find_documents
from kcode.events import Notice
from kcode.paths import Paths

PROJECT_FOLDER = ".kcode/commands"
RESERVED = frozenset(
    {
        *("help", "model", "new", "resume", "diff", "undo", "agents", "violations", "trust", "quit", "exit", "clear", "context"),
        *("compact", "fork", "rewind", "redo", "export", "replay", "todos", "copy", "editor", "settings", "theme", "jobs"),
        *("stats", "sessions", "permissions", "hooks", "mcp", "skills", "commands", "effort", "mode", "init", "plan", "files"),
    }
)
"""What kcode's own screens are called, or may be."""
_PLACE = re.compile(r"\$(ARGUMENTS|[1-9])")


@dataclass(frozen=True, slots=True)
class CustomCommand:
    """`name` without the slash. In `text` stand `$ARGUMENTS` and `$1` to `$9` for what follows the name."""

    name: str
    summary: str
    text: str
    source: str

    def expanded(self, arguments: str) -> str:
        """The message. Without a place for them, arguments are appended; a word that was not given is empty."""
        if not _PLACE.search(self.text):
            return f"{self.text}\n\n{arguments}".strip()
        words = arguments.split()

        def value(found: re.Match[str]) -> str:
            if found[1] == "ARGUMENTS":
                return arguments
            number = int(found[1])
            return words[number - 1] if number <= len(words) else ""

        return _PLACE.sub(value, self.text).strip()


def find_commands(paths: Paths, workspace: Path) -> tuple[tuple[CustomCommand, ...], tuple[Notice, ...]]:
    """By name, and a notice for each file that is none."""
    found: dict[str, CustomCommand] = {}
    notices: list[Notice] = []
    for top, folder, shown in ((paths.config, "commands", f"{paths.config}/"), (workspace, PROJECT_FOLDER, "")):
        for place, document in find_documents(top, folder, ".md"):
            source = f"{shown}{place}"
            if isinstance(document, BadDocument):
                notices.append(Notice("warning", f"{source} is no command: {document}"))
                continue
            name = ":".join(document.place.removesuffix(".md").split("/"))
            if not all(NAME.fullmatch(part) for part in name.split(":")):
                problem = f"a name has small letters, digits, _ and -, not {name!r}"
            elif name in RESERVED:
                problem = f"/{name} is kcode's own; rename it"
            elif not document.text:
                problem = "it has no text"
            else:
                summary = document.fields.get("description", "") or document.text.splitlines()[0].lstrip("# ")
                hint = document.fields.get("argument-hint", "")
                found.setdefault(name, CustomCommand(name, f"{hint} {summary}".strip()[:200], document.text, source))
                continue
            notices.append(Notice("warning", f"{source} is no command: {problem}"))
    return tuple(found[name] for name in sorted(found)), tuple(notices)


def expand(text: str, commands: Iterable[CustomCommand]) -> str:
    """What `text` says when it begins with one of the commands, else itself."""
    words = text.strip().split(maxsplit=1)
    command = next((command for command in commands if words and words[0] == f"/{command.name}"), None)
    return text if command is None else command.expanded(words[1].strip() if len(words) > 1 else "")
