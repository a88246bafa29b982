"""`insert`: put lines into a file after a given line."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kcode.tools.edited import write_edit
from kcode.tools.refusal import Refusal, settle
from kcode.tools.replacing import plain_ends
from kcode.tools.textfile import ReadFiles, open_text
from kcode.tools.tool import Access, Emit, Outcome
from kcode_sandbox.sandbox import Sandbox


class InsertArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="The file to edit.", min_length=1, max_length=4096)
    line: int = Field(description="The new text comes after this line; 0 puts it before the first.", ge=0)
    text: str = Field(description="Whole lines, with their indentation.", min_length=1, max_length=200_000)


class InsertTool:
    name: str = "insert"
    access: Access = "write"
    arguments: type[InsertArguments] = InsertArguments

    def __init__(self, sandbox: Sandbox, files: ReadFiles) -> None:
        self.sandbox = sandbox
        self.files = files

    def summary(self, arguments: InsertArguments) -> str:
        return f"insert into {arguments.path} after line {arguments.line}"

    async def run(self, arguments: InsertArguments, emit: Emit) -> Outcome:
        return await settle(self.insert(arguments))

    async def insert(self, arguments: InsertArguments) -> Outcome:
        file = await open_text(self.sandbox, arguments.path)
        if not self.files.knows(file.path):
            raise Refusal(f"{file.shown} was not read; read it first, so that the line is the right one")
        # A line number is worth nothing in a file that changed: here a glimpse of it is not enough.
        self.files.check(file.path, file.sha256, file.shown)
        text = file.content.text
        lines = text.count("\n") + (0 if text.endswith("\n") or not text else 1)
        if arguments.line > lines:
            raise Refusal(f"line {arguments.line} is past the end: {file.shown} has {lines} lines")
        new = plain_ends(arguments.text).removesuffix("\n")
        position = 0
        for _ in range(arguments.line):
            position = text.find("\n", position) + 1 or len(text)
        # After a last line without an end, the new text brings the line end and is itself left without one.
        at_open_end = position == len(text) and bool(text) and not text.endswith("\n")
        content = file.content.replaced([(position, position, f"\n{new}" if at_open_end else f"{new}\n")])
        first = arguments.line + 1
        last = first + new.count("\n")
        headline = f"Inserted lines {first}-{last} into {file.shown}."
        return await write_edit(self.sandbox, self.files, file, content, headline, (first, last))
