"""`create`: write a whole file, new or one that was read before."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import DiffDisplay
from kcode.tools.refusal import Refusal, settle
from kcode.tools.syntax import describe_faults, introduced_faults
from kcode.tools.textfile import ReadFiles, changed_paths, encode_new, exists, open_text, shown_path
from kcode.tools.tool import Access, Emit, Outcome
from kcode_sandbox.errors import FileError, SandboxDiedError
from kcode_sandbox.sandbox import Sandbox


class CreateArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="The file to write; missing folders are made.", min_length=1, max_length=4096)
    content: str = Field(description="The whole content of the file.", max_length=1_000_000)


class CreateTool:
    name: str = "create"
    access: Access = "write"
    arguments: type[CreateArguments] = CreateArguments

    def __init__(self, sandbox: Sandbox, files: ReadFiles) -> None:
        self.sandbox = sandbox
        self.files = files

    def summary(self, arguments: CreateArguments) -> str:
        lines = arguments.content.count("\n") + 1
        return f"write {arguments.path} ({lines} line{'s' if lines > 1 else ''})"

    async def before(self, arguments: CreateArguments) -> str:
        try:
            return (await open_text(self.sandbox, arguments.path)).content.text
        except (Refusal, FileError, SandboxDiedError):
            return ""

    async def run(self, arguments: CreateArguments, emit: Emit) -> Outcome:
        return await settle(self.write(arguments))

    async def write(self, arguments: CreateArguments) -> Outcome:
        if await exists(self.sandbox, arguments.path) is None:
            return await self.write_new(arguments)
        return await self.rewrite(arguments)

    async def write_new(self, arguments: CreateArguments) -> Outcome:
        stat = await self.sandbox.write(arguments.path, encode_new(arguments.content), expect_sha256="")
        self.files.note(stat.path, stat.sha256)
        shown = shown_path(self.sandbox, stat, arguments.path)
        return report(shown, "", arguments.content, f"Created {shown}", changed_paths(self.sandbox, stat.path))

    async def rewrite(self, arguments: CreateArguments) -> Outcome:
        file = await open_text(self.sandbox, arguments.path)
        if not self.files.knows(file.path):
            raise Refusal(f"{file.shown} exists already; read it first, or edit it with str_replace")
        self.files.check(file.path, file.sha256, file.shown)
        content = file.content.replaced([(0, len(file.content.text), arguments.content)])
        if content.text == file.content.text:
            raise Refusal(f"{file.shown} already has exactly this content")
        stat = await self.sandbox.write(file.path, content.encode(), expect_sha256=file.sha256)
        self.files.note(file.path, stat.sha256)
        changed = changed_paths(self.sandbox, file.path)
        return report(file.shown, file.content.text, content.text, f"Rewrote {file.shown}", changed)


def report(shown: str, old: str, new: str, headline: str, changed: tuple[str, ...]) -> Outcome:
    lines = new.count("\n") + (0 if new.endswith("\n") else 1)
    text = f"{headline} ({lines} lines)."
    faults = introduced_faults(shown, old, new)
    if faults:
        text += f"\nIt has syntax errors; fix them:\n{describe_faults(faults)}"
    return Outcome(text, DiffDisplay(shown, old, new), changed=changed)
