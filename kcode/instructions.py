"""AGENTS.md: what the user and a repository want of whoever works in it.

The user's own (in kcode's configuration folder), those of the folders from the repository's root down to the workspace, and that
of the workspace stand before the first message of a session. Those of deeper folders are appended to the result of the first call
that touches such a folder. So nothing changes that a model has read. Where there is no AGENTS.md a CLAUDE.md takes its place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pydantic import BaseModel

from kcode.events import Notice
from kcode.messages import Message
from kcode.paths import Paths
from kcode.steps import Driver, Ending, Steps
from kcode.tools.tool import Access, Emit, Outcome, replaced_by
from kcode.tools.toolbox import AnyTool
from kcode.tools.truncate import plain
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import Sandbox

NAMES = ("AGENTS.md", "CLAUDE.md")
MAX_BYTES = 32 << 10
"""Of all that stands before the first message; the deeper a file lies, the sooner it is given room."""
MAX_NESTED_BYTES = 8 << 10
"""Of one file of a deeper folder."""
MAX_DEPTH = 16
HEAD = (
    "Instructions for work in this folder, from the user and the repository, in force for the whole session. Where they differ, "
    "the later ones and what the user says come first."
)


@dataclass(frozen=True, slots=True)
class Source:
    """A file of instructions; `size` is the whole file's."""

    name: str
    text: str
    size: int


async def opening_instructions(sandbox: Sandbox, paths: Paths, workspace: Path) -> tuple[str, tuple[Notice, ...]]:
    """What stands before the first message ("" for nothing), and a notice for each file that was cut."""
    found = [_of_host(paths.config), *(_of_host(folder) for folder in _outer_folders(workspace)), await _of_sandbox(sandbox, "")]
    sources = [source for source in found if source is not None and source.text.strip()]
    if not sources:
        return "", ()
    room, shown, notices = MAX_BYTES, list[str](), list[Notice]()
    for source in reversed(sources):
        data = source.text.encode()
        text = data[:room].decode(errors="ignore")
        if source.size > len(data) or len(data) > room:
            told = f"{source.name} has {source.size} bytes, of which the model is given {len(text.encode())}; shorten it"
            notices.append(Notice("warning", f"{told} (all files of instructions together: {MAX_BYTES})"))
            text = f"{text}\n[cut]"
        room -= min(room, len(data))
        shown.insert(0, f"--- {source.name}\n{text.strip()}")
    return "\n\n".join([HEAD, *shown]), tuple(notices)


def instructed(driver: Driver, text: str) -> Driver:
    """The driver, whose first user message begins with `text`."""

    async def drive(steps: Steps, said: str) -> Ending:
        is_first = not any(message.role == "user" for message in steps.messages)
        return await driver(steps, f"{text}\n\n---\n{said}" if is_first else said)

    return drive


class NestedInstructions:
    """Those of folders below the workspace. `messages` gives what the model has read."""

    def __init__(self, sandbox: Sandbox, messages: Callable[[], Sequence[Message]]) -> None:
        self._sandbox = sandbox
        self._messages = messages
        self._looked: dict[str, str] = {}
        # The head of what each folder had to say, "" for nothing; what a compaction took away is told again.

    async def about(self, path: str) -> str:
        """What is to be read on the first touch of `path`, "" for nothing."""
        parts: list[str] = []
        for folder in self._folders(path):
            known = self._looked.get(folder)
            if known is not None and (not known or self._has_read(known)):
                continue
            self._looked[folder] = ""
            source = await _of_sandbox(self._sandbox, folder, MAX_NESTED_BYTES)
            if source is None or not source.text.strip():
                continue
            head = self._looked[folder] = f"[instructions for {folder}/, from {source.name}]"
            if not self._has_read(head):
                cut = (
                    ""
                    if source.size <= MAX_NESTED_BYTES
                    else f"\n[cut at {MAX_NESTED_BYTES} of {source.size} bytes; read the file]"
                )
                parts.append(f"{head}\n{source.text.strip()}{cut}")
        return "\n\n".join(parts)

    def _folders(self, path: str) -> list[str]:
        """Below the workspace, from the top: those that `path` lies in, and itself, which may be one."""
        workspace = str(self._sandbox.policy.workspace)
        relative = os.path.relpath(os.path.normpath(os.path.join(workspace, path)), workspace)
        parts = relative.split("/")
        if parts[0] in ("..", "."):
            return []
        return ["/".join(parts[:depth]) for depth in range(1, min(len(parts), MAX_DEPTH) + 1)]

    def _has_read(self, head: str) -> bool:
        return any(head in result.text for message in self._messages() for result in message.results)


class InstructedTool:
    """A tool whose results also tell the instructions of the folder that its `path` lies in."""

    def __init__(self, tool: AnyTool, nested: NestedInstructions) -> None:
        self.name = tool.name
        self.access: Access = tool.access
        self.arguments = tool.arguments
        self._tool = tool
        self._nested = nested

    def summary(self, arguments: BaseModel) -> str:
        return self._tool.summary(arguments)

    async def before(self, arguments: BaseModel) -> str:
        return await replaced_by(self._tool, arguments)

    async def run(self, arguments: BaseModel, emit: Emit) -> Outcome:
        outcome = await self._tool.run(arguments, emit)
        path = getattr(arguments, "path", None)
        said = await self._nested.about(path) if isinstance(path, str) and not outcome.is_refused else ""
        return replace(outcome, text=f"{outcome.text}\n\n{said}") if said else outcome


def with_nested(tools: Sequence[AnyTool], nested: NestedInstructions) -> tuple[AnyTool, ...]:
    """The tools; those that take a path tell what holds there."""
    return tuple(
        cast("AnyTool", InstructedTool(tool, nested)) if "path" in tool.arguments.model_fields else tool for tool in tools
    )


def _outer_folders(workspace: Path) -> list[Path]:
    """Above the workspace up to the root of its repository, from the top; none when the workspace is the root."""
    above: list[Path] = []
    for folder in (workspace, *workspace.parents):
        if (folder / ".git").exists():
            return above[::-1]
        if folder.parent != folder:
            above.append(folder.parent)
    return []


def _of_host(folder: Path) -> Source | None:
    """Of a folder that the sandbox cannot write. A link is not followed: it may come with a repository and name any file."""
    for name in NAMES:
        file = folder / name
        try:
            fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        with open(fd, "rb") as opened:
            facts = os.fstat(fd)
            if stat.S_ISREG(facts.st_mode):
                return Source(str(file), _clean(opened.read(MAX_BYTES)), facts.st_size)
    return None


async def _of_sandbox(sandbox: Sandbox, folder: str, most: int = MAX_BYTES) -> Source | None:
    for name in NAMES:
        path = f"{folder}/{name}" if folder else name
        try:
            content = await sandbox.read(path, max_bytes=most)
        except FileError:
            continue
        return Source(path, _clean(content.data), content.stat.size)
    return None


def _clean(data: bytes) -> str:
    return plain(data.decode(errors="replace"))
