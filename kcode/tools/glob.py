"""`glob`: find files by name, newest first."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.refusal import settle
from kcode.tools.tool import Access, Emit, Outcome
from kcode.tools.truncate import LISTING_ENTRIES
from kcode_sandbox.sandbox import FileStat, Sandbox


class GlobArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    pattern: str = Field(
        description='Glob such as "**/*.py", "src/*.{js,ts}" or "test_*"; without a slash it matches in every folder.',
        min_length=1,
        max_length=500,
    )
    path: str = Field(default=".", description="Folder to search.", min_length=1, max_length=4096)


class GlobTool:
    name: str = "glob"
    access: Access = "read"
    arguments: type[GlobArguments] = GlobArguments

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def summary(self, arguments: GlobArguments) -> str:
        return f"glob {arguments.pattern}" + ("" if arguments.path == "." else f" in {arguments.path}")

    async def run(self, arguments: GlobArguments, emit: Emit) -> Outcome:
        return await settle(self.find(arguments))

    async def find(self, arguments: GlobArguments) -> Outcome:
        stats = await self.sandbox.list_files(arguments.path)
        paths = matching(stats, arguments.pattern, arguments.path)
        if not paths:
            where = "the workspace" if arguments.path == "." else arguments.path
            text = f"No file matches {arguments.pattern!r} in {where}."
            return Outcome(text, PlainDisplay(text))
        cut = len(paths) - LISTING_ENTRIES
        text = "\n".join(paths[:LISTING_ENTRIES])
        if cut > 0:
            text += f"\n[{cut} more files; use a narrower pattern]"
        return Outcome(text, PlainDisplay(text))


def matching(stats: list[FileStat], pattern: str, root: str) -> list[str]:
    """Paths in the order given that match by their whole path, below `root`, or, without a slash, by their name."""
    expression = translate(pattern.removeprefix("./"))
    prefix = "" if root in {".", "./"} else root.rstrip("/").removeprefix("./") + "/"
    found: list[str] = []
    for stat in stats:
        below = stat.path.removeprefix(prefix)
        names = [below, stat.path] if "/" in pattern else [below, below.rsplit("/", 1)[-1]]
        if any(expression.fullmatch(name) for name in names):
            found.append(stat.path)
    return found


def translate(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay within a folder, `**/` is any number of folders, `{a,b}` and `[abc]` as in a shell."""
    pieces: list[str] = []
    index, depth = 0, 0
    while index < len(pattern):
        char = pattern[index]
        if pattern.startswith("**/", index):
            pieces.append("(?:[^/]+/)*")
            index += 3
            continue
        if pattern.startswith("**", index):
            pieces.append(".*")
            index += 2
            continue
        end = pattern.find("]", index + 2) if char == "[" else -1
        if end > 0:
            body = pattern[index + 1 : end].replace("\\", "\\\\")
            pieces.append(f"[^{body[1:]}]" if body[0] in "!^" else f"[{body}]")
            index = end + 1
            continue
        if char == "{" and "}" in pattern[index:]:
            depth += 1
            pieces.append("(?:")
        elif char == "}" and depth:
            depth -= 1
            pieces.append(")")
        elif char == "," and depth:
            pieces.append("|")
        else:
            pieces.append({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)))
        index += 1
    pieces.append(")" * depth)
    try:
        return re.compile("".join(pieces))
    except re.error:
        return re.compile(re.escape(pattern))
