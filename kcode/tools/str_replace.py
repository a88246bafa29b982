"""`str_replace`: replace a piece of text that stands in exactly one place of a file."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field

from kcode.tools.edited import write_edit
from kcode.tools.ladder import Ambiguous, Closest, Match, locate
from kcode.tools.refusal import Refusal, settle
from kcode.tools.textfile import OpenFile, ReadFiles, open_text
from kcode.tools.tool import Access, Emit, Outcome
from kcode.tools.truncate import numbered
from kcode_sandbox.sandbox import Sandbox

SHORT_FILE_LINES = 400
MISSES_BEFORE_REWRITE = 2
MIN_SIMILARITY = 0.25
REGION_MARGIN = 2
MAX_REGION_LINES = 60
NUMBERED = re.compile(r"^\s*\d+(?:\t|: ?|\| ?| {2,})")


class StrReplaceArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="The file to edit.", min_length=1, max_length=4096)
    old: str = Field(
        description="The text to replace, exactly as in the file, without line numbers, with enough lines to be unique.",
        min_length=1,
        max_length=200_000,
    )
    new: str = Field(description="The text to put in its place; empty to delete.", max_length=200_000)
    replace_all: bool = Field(default=False, description="Replace every exact occurrence instead of a single one.")


class StrReplaceTool:
    name: str = "str_replace"
    access: Access = "write"
    arguments: type[StrReplaceArguments] = StrReplaceArguments

    def __init__(self, sandbox: Sandbox, files: ReadFiles) -> None:
        self.sandbox = sandbox
        self.files = files
        self.misses: dict[str, int] = {}

    def summary(self, arguments: StrReplaceArguments) -> str:
        return f"edit {arguments.path}"

    async def run(self, arguments: StrReplaceArguments, emit: Emit) -> Outcome:
        return await settle(self.replace(arguments))

    async def replace(self, arguments: StrReplaceArguments) -> Outcome:
        old, new = arguments.old.replace("\r\n", "\n"), arguments.new.replace("\r\n", "\n")
        if old == new:
            raise Refusal("old and new are the same; nothing to do")
        file = await open_text(self.sandbox, arguments.path)
        self.files.check(file.path, file.sha256, file.shown)
        found = locate(file.content.text, old, new, replace_all=arguments.replace_all)
        match found:
            case Match():
                self.misses.pop(file.path, None)
                return await self.apply(file, found)
            case Ambiguous():
                raise Refusal(ambiguity(found, arguments.path))
            case Closest():
                self.misses[file.path] = self.misses.get(file.path, 0) + 1
                raise Refusal(miss(file, found, self.misses[file.path]) + numbers_hint(old))

    async def apply(self, file: OpenFile, found: Match) -> Outcome:
        content = file.content.replaced([(start, end, found.new) for start, end in found.spans])
        if content.text == file.content.text:
            raise Refusal("this edit changes nothing: the file already has the new text")
        first = file.content.text.count("\n", 0, found.spans[0][0]) + 1
        last = first + max(found.new.removesuffix("\n").count("\n"), 0)
        count = f"{len(found.spans)} places" if len(found.spans) > 1 else f"line {first}"
        headline = f"Edited {file.shown}, {count}."
        if found.rung != "exact":
            headline += f" The text matched only after adapting {found.rung}; check the result:"
        return await write_edit(self.sandbox, self.files, file, content, headline, (first, last))


def numbers_hint(old: str) -> str:
    """The commonest slip: the line numbers that read shows were copied too."""
    lines = [line for line in old.split("\n") if line]
    if lines and all(NUMBERED.match(line) for line in lines):
        return "\nLeave out the line numbers at the start of each line."
    return ""


def ambiguity(found: Ambiguous, path: str) -> str:
    lines = ", ".join(str(line) for line in found.lines[:20])
    way = "add lines around it to `old` until it is unique"
    if found.rung == "exact":
        return f"`old` stands {len(found.lines)} times in {path} (lines {lines}); {way}, or set replace_all"
    return f"`old` is not in {path} exactly, and ignoring {found.rung} it matches at lines {lines}; {way}"


def miss(file: OpenFile, found: Closest, misses: int) -> str:
    """Where the text probably is, so that the next call can be right."""
    lines = file.content.text.removesuffix("\n").split("\n")
    text = f"`old` is not in {file.shown}."
    if found.similarity >= MIN_SIMILARITY:
        start = max(found.first_line - REGION_MARGIN, 1)
        end = min(found.last_line + REGION_MARGIN, len(lines), start + MAX_REGION_LINES - 1)
        text += f" The closest lines are {found.first_line}-{found.last_line}; copy `old` from them:\n"
        text += numbered(lines[start - 1 : end], start)
    else:
        text += f" Nothing in its {len(lines)} lines resembles it; read the file first."
    if misses >= MISSES_BEFORE_REWRITE and len(lines) < SHORT_FILE_LINES:
        text += f"\nThe file is short ({len(lines)} lines): you may instead write it whole with create, after reading it."
    return text
