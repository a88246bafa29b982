"""`grep`: search file contents with ripgrep, inside the sandbox."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.refusal import Refusal, settle
from kcode.tools.ripgrep import ripgrep_path
from kcode.tools.tool import Access, Emit, Outcome
from kcode.tools.truncate import GREP_LINES, clip_line, plain
from kcode_sandbox.sandbox import Sandbox

TIMEOUT_S = 30.0
MATCH_CHARS = 300
NOT_EXECUTABLE = {126, 127}


class GrepArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    pattern: str = Field(description="Regular expression (Rust syntax).", min_length=1, max_length=1000)
    path: str = Field(default=".", description="File or folder to search.", min_length=1, max_length=4096)
    glob: str | None = Field(default=None, description='Only files matching, e.g. "*.py" or "src/**/*.ts".', max_length=500)
    mode: Literal["content", "files", "count"] = Field(
        default="content", description="content: matching lines; files: paths only; count: matches per file."
    )
    ignore_case: bool = Field(default=False, description="Ignore case.")
    context: int = Field(default=0, description="Lines to show around each match (content mode).", ge=0, le=10)
    literal: bool = Field(default=False, description="Take the pattern as plain text, not as a regular expression.")


class GrepTool:
    name: str = "grep"
    access: Access = "read"
    arguments: type[GrepArguments] = GrepArguments

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def summary(self, arguments: GrepArguments) -> str:
        where = "" if arguments.path == "." else f" in {arguments.path}"
        return f"grep {arguments.pattern!r}{where}" + (f" ({arguments.glob})" if arguments.glob else "")

    async def run(self, arguments: GrepArguments, emit: Emit) -> Outcome:
        return await settle(self.search(arguments))

    async def search(self, arguments: GrepArguments) -> Outcome:
        binary = ripgrep_path()
        if binary is None:
            raise Refusal("ripgrep (rg) is not installed beside kcode; use bash with grep -rn")
        result = await self.sandbox.exec(
            [str(binary), *options(arguments), "-e", arguments.pattern, "--", arguments.path],
            timeout_s=TIMEOUT_S,
            separate_stderr=True,
        )
        complaint = plain(result.stderr.decode(errors="replace")).strip()
        if result.exit_code in NOT_EXECUTABLE:
            raise Refusal(f"ripgrep at {binary} cannot be run inside the sandbox; use bash with grep -rn")
        if result.exit_code not in {0, 1, None} and not result.output:
            raise Refusal(complaint.removeprefix("rg: ") or f"ripgrep ended with exit code {result.exit_code}")
        lines = [clip_line(line, MATCH_CHARS + 200) for line in plain(result.output.decode(errors="replace")).splitlines()]
        lines = [line.removeprefix("./") for line in lines]
        text = bounded(lines, arguments)
        if result.timed_out:
            text += f"\n[stopped after {TIMEOUT_S:.0f} s; narrow the path or the glob]"
        return Outcome(text, PlainDisplay(text))


def options(arguments: GrepArguments) -> list[str]:
    chosen = ["--no-config", "--color=never", "--hidden", "--glob=!.git", "--sort=path", "--no-messages"]
    if arguments.mode == "content":
        chosen += ["--line-number", "--no-heading", "--with-filename", f"--max-columns={MATCH_CHARS}", "--max-columns-preview"]
        chosen += [f"--context={arguments.context}"] if arguments.context else []
    elif arguments.mode == "files":
        chosen.append("--files-with-matches")
    else:
        chosen += ["--count-matches", "--with-filename"]
    chosen += ["--ignore-case"] if arguments.ignore_case else []
    chosen += ["--fixed-strings"] if arguments.literal else []
    chosen += [f"--glob={arguments.glob}"] if arguments.glob else []
    return chosen


def bounded(lines: list[str], arguments: GrepArguments) -> str:
    if not lines:
        where = arguments.path if arguments.glob is None else f"{arguments.glob} below {arguments.path}"
        return f"No match for {arguments.pattern!r} in {where}."
    cut = len(lines) - GREP_LINES
    shown = "\n".join(lines[:GREP_LINES])
    return shown if cut <= 0 else f"{shown}\n[{cut} more lines; narrow the pattern, the path or the glob]"
