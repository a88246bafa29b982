"""Skills: folders with a SKILL.md, which a model reads when its task is what the skill is about.

A model is told their names and descriptions before the first message, in a bounded text, and reads the file itself like any
other: what nobody needs costs a line. The user's lie in `skills/` of kcode's configuration folder, which is then readable in the
sandbox; a repository's in `.kcode/skills`, `.agents/skills` or `.claude/skills`. What a skill lets a model run, it runs in the
sandbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kcode.custom_commands import CustomCommand
from kcode.documents import NAME, BadDocument, find_documents
from kcode.events import Notice
from kcode.paths import Paths

PROJECT_FOLDERS = (".kcode/skills", ".agents/skills", ".claude/skills")
COMMAND_SUMMARY = "skill: "
"""What the summary of a skill's slash command begins with."""
MAX_DESCRIPTION = 400
MAX_LISTED_BYTES = 6 << 10
HEAD = "Skills: when a task is what one of these is about, read its file first and do as it says."


@dataclass(frozen=True, slots=True)
class Skill:
    """`file` is its SKILL.md as it is called inside the sandbox."""

    name: str
    description: str
    file: str

    @property
    def command(self) -> CustomCommand:
        text = f"Use the skill {self.name}: read {self.file} and do as it says.\n\n$ARGUMENTS"
        return CustomCommand(self.name, f"{COMMAND_SUMMARY}{self.description}"[:200], text, self.file)


def find_skills(paths: Paths, workspace: Path) -> tuple[tuple[Skill, ...], tuple[Notice, ...]]:
    """By name; the user's before the repository's of the same name, and a notice for each that is none."""
    found: dict[str, Skill] = {}
    notices: list[Notice] = []
    own = paths.config.resolve()
    places = [(own, "skills", f"{own}/"), *((workspace, folder, "") for folder in PROJECT_FOLDERS)]
    for top, folder, shown in places:
        for place, document in find_documents(top, folder, "/SKILL.md"):
            file = f"{shown}{place}"
            if isinstance(document, BadDocument):
                notices.append(Notice("warning", f"{file} is no skill: {document}"))
                continue
            name = document.fields.get("name", "") or place.split("/")[-2].lower()
            description = document.fields.get("description", "")
            if not NAME.fullmatch(name) or not description:
                problem = f"its name is {name!r}" if description else "its head has no description"
                notices.append(Notice("warning", f"{file} is no skill: {problem}"))
                continue
            found.setdefault(name, Skill(name, description[:MAX_DESCRIPTION], file))
    return tuple(found[name] for name in sorted(found)), tuple(notices)


def listed(skills: Sequence[Skill]) -> tuple[str, tuple[Notice, ...]]:
    """What a model is told of them, "" for none, and a notice when not all have room."""
    lines, size = [HEAD], len(HEAD)
    for skill in skills:
        line = f"- {skill.name} ({skill.file}): {skill.description}"
        size += len(line.encode()) + 1
        if size > MAX_LISTED_BYTES:
            left = len(skills) - len(lines) + 1
            told = f"{left} of {len(skills)} skills are not listed for the model ({MAX_LISTED_BYTES} bytes at most)"
            return "\n".join(lines), (Notice("warning", f"{told}; /NAME still works"),)
        lines.append(line)
    return ("\n".join(lines) if skills else ""), ()
