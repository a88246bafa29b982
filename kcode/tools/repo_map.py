"""`repo_map`: the repository at a glance, within a number of tokens."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.refusal import settle
from kcode.tools.repoindex import Graph, IndexedFile, RepoIndex, chosen, rank
from kcode.tools.tool import Access, Emit, Outcome
from kcode_sandbox.sandbox import Sandbox

DEFAULT_TOKENS = 2000
MAX_TOKENS = 8000
# Code has seldom fewer characters to a token.
CHARS_PER_TOKEN = 3
MAX_DEFINITIONS = 15
_WORDS = re.compile(r"[\w$./:#-]+")


class RepoMapArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    about: str = Field(
        default="",
        description="Names, paths or the task itself; what they point to comes first.",
        max_length=4000,
    )
    path: str = Field(default=".", description="Only files below this folder.", min_length=1, max_length=4096)
    max_tokens: int = Field(default=DEFAULT_TOKENS, description="How long the map may be.", ge=100, le=MAX_TOKENS)


class RepoMapTool:
    name: str = "repo_map"
    access: Access = "read"
    arguments: type[RepoMapArguments] = RepoMapArguments

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.index = RepoIndex(sandbox)

    def summary(self, arguments: RepoMapArguments) -> str:
        about = " ".join(arguments.about.split())[:80]
        return "map" + ("" if arguments.path == "." else f" {arguments.path}") + (f" about {about}" if about else "")

    async def run(self, arguments: RepoMapArguments, emit: Emit) -> Outcome:
        return await settle(self.draw(arguments, emit))

    async def draw(self, arguments: RepoMapArguments, emit: Emit) -> Outcome:
        files = await self.index.update(emit)
        graph = self.index.graph()
        mentioned = words_of(arguments.about)
        folder = arguments.path.removeprefix(f"{self.sandbox.policy.workspace}").strip("/").removeprefix("./")
        inside = "" if folder in {"", "."} else f"{folder}/"
        ranked = [files[path] for path in rank(files, graph, mentioned) if path.startswith(inside)]
        if not ranked:
            text = f"There are no source files below {arguments.path} that kcode can parse; look with glob."
            return Outcome(text, PlainDisplay(text))
        text, left_out = render(ranked, graph, mentioned, arguments.max_tokens * CHARS_PER_TOKEN)
        left_out += 0 if inside else self.index.left_out
        if left_out:
            text += f"\n[{left_out} more files; name a path or words in about, or raise max_tokens]"
        return Outcome(text, PlainDisplay(text))


def words_of(text: str) -> frozenset[str]:
    """What may be a path or a name, also the parts of what is joined by dots and slashes."""
    whole = [word.strip(".:/#-") for word in _WORDS.findall(text)]
    parts = [part for word in whole for part in re.split(r"[./:#-]+", word)]
    return frozenset(word for word in (*whole, *(word.replace("::", ".") for word in whole), *parts) if len(word) > 2)


def render(ranked: list[IndexedFile], graph: Graph, mentioned: frozenset[str], max_chars: int) -> tuple[str, int]:
    """Files with their definitions as long as there is room, then names of files; and how many are left out."""
    pieces: list[str] = []
    used = 0
    for file in ranked:
        found = chosen(file, graph, mentioned, MAX_DEFINITIONS)
        lines = [file.path]
        lines += [f"{'  ' * (entry.depth + 1)}{entry.first_line}-{entry.last_line} {entry.signature}" for entry in found]
        if len(file.defined) > len(found):
            lines.append(f"  … {len(file.defined) - len(found)} more")
        block = "\n".join(lines)
        if used + len(block) + 1 > max_chars:
            block = file.path
        if used + len(block) + 1 > max_chars:
            break
        pieces.append(block)
        used += len(block) + 1
    return "\n".join(pieces), len(ranked) - len(pieces)
