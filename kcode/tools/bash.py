"""`bash`: one command in the session's shell."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.outputs import Outputs
from kcode.tools.refusal import settle
from kcode.tools.tool import Access, Emit, Outcome
from kcode.tools.truncate import plain
from kcode_sandbox.sandbox import Sandbox, ShellResult

DEFAULT_TIMEOUT_S = 120
MAX_TIMEOUT_S = 600
SUMMARY_CHARS = 200


class BashArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    command: str = Field(description="The command line.", min_length=1, max_length=50_000)
    timeout_s: int = Field(
        default=DEFAULT_TIMEOUT_S,
        description="After so many seconds the command goes on in the background.",
        ge=1,
        le=MAX_TIMEOUT_S,
    )


class BashTool:
    name: str = "bash"
    access: Access = "execute"
    arguments: type[BashArguments] = BashArguments

    def __init__(self, sandbox: Sandbox, outputs: Outputs) -> None:
        self.sandbox = sandbox
        self.outputs = outputs

    def summary(self, arguments: BashArguments) -> str:
        command = " ".join(arguments.command.split())
        return f"$ {command[:SUMMARY_CHARS]}" + ("…" if len(command) > SUMMARY_CHARS else "")

    async def run(self, arguments: BashArguments, emit: Emit) -> Outcome:
        return await settle(self.execute(arguments, emit))

    async def execute(self, arguments: BashArguments, emit: Emit) -> Outcome:
        shell = await self.sandbox.shell()
        live = LiveText(emit)
        result = await shell.run(arguments.command, float(arguments.timeout_s), live.feed)
        output = plain(result.output.decode(errors="replace")).strip("\n")
        text = await self.outputs.bounded(output, "bash")
        notes = closing_notes(result, arguments.timeout_s, empty=not output)
        full = "\n".join(part for part in (text, *notes) if part)
        return Outcome(full, PlainDisplay(full), is_error=result.exit_code not in {0, None})


def closing_notes(result: ShellResult, timeout_s: int, *, empty: bool) -> list[str]:
    """What the output itself does not say."""
    notes: list[str] = []
    if result.exit_code is None:
        notes.append(
            f"[still running after {timeout_s} s, now in the background as job {result.job_id}; "
            "the shell is free for other commands]"
        )
    elif result.exit_code != 0:
        notes.append(f"[exit code {result.exit_code}]")
    elif empty:
        notes.append("[no output, exit code 0]")
    return notes


@dataclass(slots=True)
class LiveText:
    """Bytes in, readable text out, as they come; a character split between two pieces waits for its rest."""

    emit: Emit
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def feed(self, data: bytes) -> None:
        text = plain(self.decoder.decode(data))
        if text:
            self.emit(text)
