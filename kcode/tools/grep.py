"""`grep`: search file contents with ripgrep, inside the sandbox."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.refusal import Refusal, settle
from kcode.tools.tool import Access, Emit, Outcome
from kcode.tools.truncate import GREP_LINES, clip_line, plain
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import ExecResult, Sandbox

TIMEOUT_S = 30.0
MATCH_CHARS = 300


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
    literal: bool = Field(default=False, description="The pattern is plain text.")


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
        result = await self.ripgrep([*options(arguments), "-e", arguments.pattern, "--", arguments.path])
        complaint = plain(result.stderr.decode(errors="replace")).strip()
        if result.exit_code not in {0, 1, None} and not result.output:
            raise Refusal(complaint.removeprefix("rg: ") or f"ripgrep ended with exit code {result.exit_code}")
        lines = [clip_line(line, MATCH_CHARS + 200) for line in plain(result.output.decode(errors="replace")).splitlines()]
        lines = [line.removeprefix("./") for line in lines]
        text = bounded(lines, arguments)
        if result.timed_out:
            text += f"\n[stopped after {TIMEOUT_S:.0f} s; narrow the path or the glob]"
        return Outcome(text, PlainDisplay(text))

    async def ripgrep(self, words: list[str]) -> ExecResult:
        """The sandbox has kcode's own ripgrep on its PATH; without walls it is where the wheel put it."""
        for program in ("rg", own_ripgrep()):
            try:
                return await self.sandbox.exec([program, *words], timeout_s=TIMEOUT_S, separate_stderr=True)
            except FileError as error:
                if error.code != "ENOENT":
                    raise
        raise Refusal("ripgrep (rg) cannot be found; reinstall kcode, and use bash with grep -rn until then")


def own_ripgrep() -> str:
    return str(Path(sys.executable).parent / "rg")


def options(arguments: GrepArguments) -> list[str]:
    chosen = ["--no-config", "--color=never", "--hidden", "--glob=!.git", "--sort=path"]
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
        where = "the workspace" if arguments.path == "." else arguments.path
        files = f" (files {arguments.glob})" if arguments.glob else ""
        return f"No match for {arguments.pattern!r} in {where}{files}."
    cut = len(lines) - GREP_LINES
    shown = "\n".join(lines[:GREP_LINES])
    return shown if cut <= 0 else f"{shown}\n[{cut} more lines; narrow the pattern, the path or the glob]"
