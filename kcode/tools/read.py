"""`read`: a file's lines with their numbers, or a folder's entries."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.refusal import Refusal, settle
from kcode.tools.textfile import ReadFiles, open_text
from kcode.tools.tool import Access, Emit, Outcome
from kcode.tools.truncate import LISTING_ENTRIES, MAX_FILE_BYTES, READ_CHARS, READ_LINES, numbered
from kcode_sandbox.sandbox import FileStat, Sandbox

# Of a range of a large file so much is looked at, which is more than is ever shown.
RANGE_BYTES = 4 << 20
RANGE_TIMEOUT_S = 60.0


class ReadArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="File or folder, relative to the workspace or absolute.", min_length=1, max_length=4096)
    offset: int = Field(default=1, description="First line to show, counted from 1.", ge=1)
    limit: int = Field(default=READ_LINES, description="How many lines to show at most.", ge=1, le=READ_LINES)


class ReadTool:
    name: str = "read"
    access: Access = "read"
    arguments: type[ReadArguments] = ReadArguments

    def __init__(self, sandbox: Sandbox, files: ReadFiles) -> None:
        self.sandbox = sandbox
        self.files = files

    def summary(self, arguments: ReadArguments) -> str:
        if arguments.offset == 1 and arguments.limit == READ_LINES:
            return f"read {arguments.path}"
        return f"read {arguments.path}:{arguments.offset}-{arguments.offset + arguments.limit - 1}"

    async def run(self, arguments: ReadArguments, emit: Emit) -> Outcome:
        return await settle(self.read(arguments))

    async def read(self, arguments: ReadArguments) -> Outcome:
        stat = await self.sandbox.stat(arguments.path)
        if stat.kind == "dir":
            text = await listing(self.sandbox, arguments.path)
            return Outcome(text, PlainDisplay(text))
        if stat.kind == "file" and stat.size > MAX_FILE_BYTES:
            text = await large_range(self.sandbox, stat, arguments)
            return Outcome(text, PlainDisplay(text))
        file = await open_text(self.sandbox, arguments.path)
        self.files.note(file.path, file.sha256)
        lines = file.content.text.split("\n")
        if lines[-1] == "":
            lines.pop()
        if not lines:
            return Outcome(f"{file.shown} is empty.", PlainDisplay("empty file"))
        if arguments.offset > len(lines):
            raise Refusal(f"offset {arguments.offset} is past the end: {file.shown} has {len(lines)} lines")
        text, last = shown_lines(lines, arguments.offset, arguments.limit)
        if arguments.offset > 1 or last < len(lines):
            text += f"\n[lines {arguments.offset}-{last} of {len(lines)}"
            text += f"; go on with offset={last + 1}]" if last < len(lines) else "]"
        return Outcome(text, PlainDisplay(text))


def shown_lines(lines: list[str], offset: int, limit: int) -> tuple[str, int]:
    """Numbered lines from `offset`, bounded by `limit` and READ_CHARS, and the number of the last one (at least one line)."""
    pieces: list[str] = []
    size = 0
    for index in range(offset - 1, min(offset - 1 + limit, len(lines))):
        piece = numbered([lines[index]], index + 1)
        size += len(piece) + 1
        if pieces and size > READ_CHARS:
            break
        pieces.append(piece)
    return "\n".join(pieces), offset - 1 + len(pieces)


async def large_range(sandbox: Sandbox, stat: FileStat, asked: ReadArguments) -> str:
    """The lines asked for of a file too large to be read whole, which is refused. Nothing after them is read."""
    size = f"{stat.size / (1 << 20):.1f} MB"
    if asked.offset == 1 and asked.limit == READ_LINES:
        raise Refusal(
            f"{asked.path} has {size}, more than {MAX_FILE_BYTES >> 20} MB; read parts of it with offset and limit, "
            "or look at it with grep or bash (head, tail, wc -l)"
        )
    if b"\0" in (await sandbox.read(asked.path, max_bytes=1 << 16)).data:
        raise Refusal(f"{asked.path} is a binary file ({stat.size} bytes); inspect it with bash (file, xxd, strings)")
    script = 'tail -n +"$1" -- "$3" | head -n "$2" | head -c "$4"'
    argv = ("sh", "-c", script, "sh", str(asked.offset), str(asked.limit + 1), stat.path, str(RANGE_BYTES))
    result = await sandbox.exec(argv, timeout_s=RANGE_TIMEOUT_S, separate_stderr=True)
    kept = result.output
    if result.timed_out:
        raise Refusal(f"line {asked.offset} of {asked.path} ({size}) was not found in {RANGE_TIMEOUT_S:.0f} s; use grep instead")
    if not kept:
        raise Refusal(f"offset {asked.offset} is past the end of {asked.path} ({size}); bash knows how many lines it has (wc -l)")
    lines = kept.decode(errors="replace").replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    _, shown = shown_lines(lines, 1, asked.limit)
    last = asked.offset + shown - 1
    is_end = shown == len(lines) and len(kept) < RANGE_BYTES
    end = "it ends here" if is_end else f"go on with offset={last + 1}"
    return f"{numbered(lines[:shown], asked.offset)}\n[lines {asked.offset}-{last} of a file of {size}; {end}]"


async def listing(sandbox: Sandbox, path: str) -> str:
    """The entries of a folder that git does not ignore: files by size, folders by the number of files below."""
    stats = await sandbox.list_files(path)
    prefix = folder_prefix(sandbox, path, [stat.path for stat in stats])
    files: dict[str, int] = {}
    folders: dict[str, int] = {}
    for stat in stats:
        first, slash, _ = stat.path.removeprefix(prefix).partition("/")
        if slash:
            folders[first] = folders.get(first, 0) + 1
        else:
            files[first] = stat.size
    lines = [f"{name}/ ({count} file{'s' if count > 1 else ''})" for name, count in sorted(folders.items())]
    lines += [f"{name} ({size} bytes)" for name, size in sorted(files.items())]
    if not lines:
        return f"{path} has no files that git does not ignore."
    cut = len(lines) - LISTING_ENTRIES
    if cut > 0:
        lines = [*lines[:LISTING_ENTRIES], f"[{cut} more entries; narrow down with glob]"]
    return "\n".join(lines)


def folder_prefix(sandbox: Sandbox, path: str, found: list[str]) -> str:
    """What the paths below `path` begin with: they are relative to the workspace, or absolute outside it."""
    workspace = str(sandbox.policy.workspace)
    name = path.rstrip("/").removeprefix("./") or "/"
    if name == workspace or name == ".":
        return ""
    name = name.removeprefix(workspace + "/")
    return name + "/" if all(entry.startswith(name + "/") for entry in found) else ""
