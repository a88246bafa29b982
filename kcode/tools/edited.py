"""What all editing tools do after they know the new text: write it, look at its syntax, tell the model."""

from __future__ import annotations

from kcode.events import DiffDisplay
from kcode.tools.syntax import describe_faults, introduced_faults
from kcode.tools.textfile import OpenFile, ReadFiles, TextFile, changed_paths
from kcode.tools.tool import Outcome
from kcode.tools.truncate import numbered
from kcode_sandbox.sandbox import Sandbox

SNIPPET_LINES = 30
MARGIN_LINES = 2


async def write_edit(
    sandbox: Sandbox, files: ReadFiles, file: OpenFile, content: TextFile, headline: str, lines: tuple[int, int]
) -> Outcome:
    """Write `content` over `file`; `lines` are the first and last changed line of the new text, shown in the result."""
    stat = await sandbox.write(file.path, content.encode(), expect_sha256=file.sha256)
    files.note(file.path, stat.sha256)
    text = f"{headline}\n{snippet(content.text, lines[0], lines[1])}"
    faults = introduced_faults(file.shown, file.content.text, content.text)
    if faults:
        text += f"\nThis edit introduced syntax errors; fix them:\n{describe_faults(faults)}"
    return Outcome(text, DiffDisplay(file.shown, file.content.text, content.text), changed=changed_paths(sandbox, file.path))


def snippet(text: str, first: int, last: int) -> str:
    """The lines first..last (1-based) with a margin, at most SNIPPET_LINES of them."""
    lines = text.removesuffix("\n").split("\n")
    start = max(first - MARGIN_LINES, 1)
    end = min(max(last, first) + MARGIN_LINES, len(lines))
    if end - start + 1 <= SNIPPET_LINES:
        return numbered(lines[start - 1 : end], start)
    half = SNIPPET_LINES // 2
    head = numbered(lines[start - 1 : start - 1 + half], start)
    tail = numbered(lines[end - half : end], end - half + 1)
    return f"{head}\n[… {end - start + 1 - 2 * half} lines …]\n{tail}"
