"""`rewrite_function`: replace one function, method or class by its name."""

from __future__ import annotations

import textwrap

from pydantic import BaseModel, ConfigDict, Field

from kcode.tools.edited import write_edit
from kcode.tools.functions import rewritten
from kcode.tools.refusal import Refusal, settle
from kcode.tools.symbols import named, symbols
from kcode.tools.syntax import describe_faults, faults, language_of
from kcode.tools.textfile import ReadFiles, open_text
from kcode.tools.tool import Access, Emit, Outcome
from kcode_sandbox.errors import FileError, SandboxDiedError
from kcode_sandbox.sandbox import Sandbox


class RewriteFunctionArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="The file the function is in.", min_length=1, max_length=4096)
    name: str = Field(description='The function\'s name; a method as "Class.method".', min_length=1, max_length=300)
    code: str = Field(description="The whole new definition, from its first line to its last.", min_length=1, max_length=200_000)


class RewriteFunctionTool:
    name: str = "rewrite_function"
    access: Access = "write"
    arguments: type[RewriteFunctionArguments] = RewriteFunctionArguments

    def __init__(self, sandbox: Sandbox, files: ReadFiles) -> None:
        self.sandbox = sandbox
        self.files = files

    def summary(self, arguments: RewriteFunctionArguments) -> str:
        return f"rewrite {arguments.name} in {arguments.path}"

    async def before(self, arguments: RewriteFunctionArguments) -> str:
        """The old definition, without its indentation when the new one has none."""
        try:
            file = await open_text(self.sandbox, arguments.path)
        except (Refusal, FileError, SandboxDiedError):
            return ""
        text = file.content.text
        found = named(symbols(file.shown, text), arguments.name)
        if len(found) != 1:
            return ""
        data = text.encode()
        # Decorators that the new code does not have stay as they are.
        is_kept = b"@" in data[found[0].start_byte : found[0].core_byte] and not arguments.code.lstrip().startswith("@")
        line = data.rfind(b"\n", 0, found[0].core_byte if is_kept else found[0].start_byte) + 1
        old = data[line : found[0].end_byte].decode(errors="replace")
        return old if arguments.code[:1].isspace() else textwrap.dedent(old)

    async def run(self, arguments: RewriteFunctionArguments, emit: Emit) -> Outcome:
        return await settle(self.rewrite(arguments))

    async def rewrite(self, arguments: RewriteFunctionArguments) -> Outcome:
        file = await open_text(self.sandbox, arguments.path)
        self.files.check(file.path, file.sha256, file.shown)
        if language_of(file.shown) is None:
            raise Refusal(f"kcode has no grammar for {file.shown}; edit it with str_replace")
        new = rewritten(file.shown, file.content.text, arguments.name, arguments.code)
        content = file.content.replaced(new.spans)
        if content.text == file.content.text:
            raise Refusal(f"the new {arguments.name} is the same as the old one; change what is wrong in it")
        wrong = faults(file.shown, content.text)
        if wrong and not faults(file.shown, file.content.text):
            raise Refusal(f"nothing was changed: with this code {file.shown} has syntax errors:\n{describe_faults(wrong)}")
        same = [symbol for symbol in symbols(file.shown, content.text) if symbol.qualified == new.qualified]
        place = min(same, key=lambda symbol: abs(symbol.start_line - new.first_line), default=None)
        first, last = (place.start_line, place.end_line) if place else (new.first_line, new.first_line)
        headline = f"Rewrote {new.qualified} in {file.shown}, lines {first}-{last}." + "".join(f" {note}" for note in new.notes)
        return await write_edit(self.sandbox, self.files, file, content, headline, (first, last))
