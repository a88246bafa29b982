"""`str_replace`: replace a piece of text that stands in exactly one place of a file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kcode.tools.edited import write_edit
from kcode.tools.refusal import Refusal, settle
from kcode.tools.replacing import Miss, edit, region_now
from kcode.tools.textfile import OpenFile, ReadFiles, open_text
from kcode.tools.tool import Access, Emit, Outcome
from kcode_sandbox.sandbox import Sandbox

SHORT_FILE_LINES = 400
MISSES_BEFORE_REWRITE = 2


class StrReplaceArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="The file to edit.", min_length=1, max_length=4096)
    old: str = Field(
        description="The text to replace, with enough lines to be unique.",
        min_length=1,
        max_length=200_000,
    )
    new: str = Field(description="The text to put in its place; empty to delete.", max_length=200_000)
    replace_all: bool = Field(default=False, description="Replace every exact occurrence.")


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
        file = await open_text(self.sandbox, arguments.path)
        if self.files.is_stale(file.path, file.sha256):
            raise Refusal(self.stale(file, arguments.old))
        try:
            edited = edit(file.content, file.shown, arguments.old, arguments.new, replace_all=arguments.replace_all)
        except Miss as miss:
            self.misses[file.path] = self.misses.get(file.path, 0) + 1
            raise Refusal(str(miss) + self.offer(file)) from miss
        self.misses.pop(file.path, None)
        count = f"{edited.places} places" if edited.places > 1 else f"line {edited.lines[0]}"
        headline = f"Edited {file.shown}, {count}."
        if edited.rung != "exact":
            headline += f" The text matched only after adapting {edited.rung}; check the result:"
        return await write_edit(self.sandbox, self.files, file, edited.content, headline, edited.lines)

    def stale(self, file: OpenFile, old: str) -> str:
        """The file changed since it was read: what stands now where the edit belongs, which then may be edited."""
        text = f"{file.shown} changed since it was read"
        region = region_now(file.content.text, old)
        if not region:
            return f"{text}; read it again before editing"
        self.files.glimpse(file.path, file.sha256)
        return f"{text}; nothing was edited. Look at it as it is now.{region}"

    def offer(self, file: OpenFile) -> str:
        """After several misses a short file may be written whole."""
        lines = file.content.text.count("\n") + 1
        if self.misses[file.path] < MISSES_BEFORE_REWRITE or lines > SHORT_FILE_LINES:
            return ""
        return f"\nThe file is short ({lines} lines): you may instead write it whole with create, after reading it."
