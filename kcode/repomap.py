"""The repository at a glance: files and their definitions, what the task mentions and what others use first."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath

from kcode.tools.symbols import Symbol, named, symbols
from kcode.tools.syntax import language_of
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import FileStat, Sandbox

MAX_FILES = 600
MAX_FILE_BYTES = 256 << 10
MAX_SYMBOLS = 40
SIGNATURE_CHARS = 110
MENTION_WEIGHT = 1000.0
# A test names everything it tests; it tells less of what matters than the code does.
TEST_PENALTY = 0.3
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{2,}")
TEST_PATH = re.compile(r"(?:^|/)(?:tests?|spec|__tests__)/|(?:^|/)test_|_test\.|\.test\.|\.spec\.")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A parsed file; `words` are its identifiers with their counts."""

    path: str
    text: str
    symbols: tuple[Symbol, ...]
    words: Counter[str]

    def signature(self, symbol: Symbol) -> str:
        """The definition's first line, cut."""
        line = self.text.split("\n")[symbol.core_line - 1].strip().rstrip("{").rstrip(" :")
        return line if len(line) <= SIGNATURE_CHARS else line[:SIGNATURE_CHARS] + "…"


@dataclass(frozen=True, slots=True)
class Definition:
    """Where a name is defined; `code` is the whole definition with what belongs to it."""

    path: str
    symbol: Symbol
    code: str


async def load_sources(sandbox: Sandbox, mentioned: set[str]) -> list[SourceFile]:
    """At most MAX_FILES source files kcode can parse: those mentioned, then shallow before deep, new before old."""
    stats = [stat for stat in await sandbox.list_files(".") if language_of(stat.path) and stat.size <= MAX_FILE_BYTES]
    order = {stat.path: place for place, stat in enumerate(stats)}

    def key(stat: FileStat) -> tuple[bool, int, int]:
        return (not is_mentioned(stat.path, mentioned), stat.path.count("/"), order[stat.path])

    found: list[SourceFile] = []
    for stat in sorted(stats, key=key)[:MAX_FILES]:
        try:
            text = (await sandbox.read(stat.path, max_bytes=MAX_FILE_BYTES)).data.decode(errors="replace")
        except FileError:
            continue  # deleted or made unreadable since it was listed
        found.append(SourceFile(stat.path, text, symbols(stat.path, text), Counter(WORD.findall(text))))
    return found


def is_mentioned(path: str, mentioned: set[str]) -> bool:
    pure = PurePosixPath(path)
    return bool(mentioned & {path, pure.name, pure.stem})


async def repo_map(sandbox: Sandbox, mentioned: set[str], max_chars: int) -> str:
    """Files with their definitions and line numbers, the most relevant first, in at most `max_chars` characters.

    `mentioned` are words of the task: paths, file names, names of functions and classes.
    """
    return render(rank(await load_sources(sandbox, mentioned), mentioned), max_chars)


def rank(sources: list[SourceFile], mentioned: set[str]) -> list[tuple[SourceFile, list[Symbol]]]:
    """Files by relevance, each with its definitions in file order and without those nested in functions.

    What the task names comes first; then files whose definitions many other files use, where a name that is defined in
    several places, or stands in most files, says little about any of them.
    """
    spread = Counter[str]()
    defined = Counter[str]()
    for source in sources:
        spread.update(source.words.keys())
        defined.update({symbol.name for symbol in source.symbols})
    scores: dict[str, float] = {}
    for source in sources:
        score = MENTION_WEIGHT * is_mentioned(source.path, mentioned)
        for name in {symbol.name for symbol in source.symbols}:
            users = spread[name] - 1
            if users > 0 and not name.startswith("_"):
                score += math.log1p(users) * math.log1p(len(sources) / spread[name]) / defined[name] ** 2
            if name in mentioned:
                score += MENTION_WEIGHT / defined[name]
        score += MENTION_WEIGHT * any("." in symbol.qualified and symbol.qualified in mentioned for symbol in source.symbols)
        scores[source.path] = score * (TEST_PENALTY if TEST_PATH.search(source.path) else 1.0)
    ranked = sorted(sources, key=lambda source: (-scores[source.path], source.path))
    return [(source, shown_symbols(source.symbols)) for source in ranked]


def shown_symbols(found: tuple[Symbol, ...]) -> list[Symbol]:
    inside = {symbol.qualified for symbol in found if symbol.kind in {"function", "method"}}
    return [symbol for symbol in found if symbol.qualified.rpartition(".")[0] not in inside]


def render(ranked: list[tuple[SourceFile, list[Symbol]]], max_chars: int) -> str:
    """Whole files as long as there is room, then only their names."""
    pieces: list[str] = []
    used = 0
    for source, found in ranked:
        lines = [source.path]
        for symbol in found[:MAX_SYMBOLS]:
            depth = symbol.qualified.count(".") + 1
            lines.append(f"{'  ' * depth}{symbol.start_line}-{symbol.end_line} {source.signature(symbol)}")
        if len(found) > MAX_SYMBOLS:
            lines.append(f"  … {len(found) - MAX_SYMBOLS} more")
        block = "\n".join(lines) + "\n"
        if used + len(block) > max_chars:
            block = source.path + "\n"
        if used + len(block) > max_chars:
            break
        pieces.append(block)
        used += len(block)
    return "".join(pieces).rstrip("\n")


async def find_definition(sandbox: Sandbox, name: str) -> tuple[Definition, ...]:
    """Every definition that `name` (plain or qualified) may mean, in the order of the files' relevance to it."""
    last = name.replace("::", ".").rpartition(".")[2]
    found: list[Definition] = []
    for source, _ in rank(await load_sources(sandbox, {last}), {last}):
        data = source.text.encode()
        for symbol in named(source.symbols, name):
            found.append(Definition(source.path, symbol, data[symbol.start_byte : symbol.end_byte].decode(errors="replace")))
    return tuple(found)
