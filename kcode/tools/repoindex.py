"""What the files of a repository define and which of them use it; kept from call to call, so that only changes are read again."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from kcode.tools.symbols import Symbol, symbols
from kcode.tools.syntax import language_of
from kcode.tools.tool import Emit
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import FileStat, Sandbox

MAX_FILES = 10_000
MAX_FILE_BYTES = 256 << 10
SIGNATURE_CHARS = 110
READS_AT_ONCE = 16
# As for pages of the web: how much of a file's weight goes to the files it uses.
DAMPING = 0.85
ROUNDS = 12
# A name that so many files define says nothing about which of them is meant.
MAX_DEFINERS = 5
# A file that the task names outweighs any that is only used much; one with a name of the task comes close.
PATH_BOOST = 50.0
NAME_BOOST = 20.0
# A test names everything it tests; it tells less of what matters than the code does.
TEST_SHARE = 0.3
TEST_PATH = re.compile(r"(?:^|/)(?:tests?|spec|__tests__)/|(?:^|/)test_|_test\.|\.test\.|\.spec\.|_spec\.|Tests?\.\w+$")
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{2,}")


@dataclass(frozen=True, slots=True)
class Defined:
    """One definition as the map shows it; `depth` counts the definitions around it."""

    name: str
    qualified: str
    first_line: int
    last_line: int
    depth: int
    signature: str


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A parsed file. `version` is what its stat said when it was read; `words` are the identifiers in it."""

    path: str
    version: tuple[int, int]
    defined: tuple[Defined, ...]
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class Graph:
    """Who uses whose definitions. `users` counts the files that use a name and do not define it alone."""

    edges: dict[str, dict[str, float]]
    definers: dict[str, tuple[str, ...]]
    users: Counter[str]


class RepoIndex:
    """The source files of the workspace. A file is read again when its size or time of change is another."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._files: dict[str, IndexedFile] = {}
        self._graph: Graph | None = None
        self.left_out = 0
        self.parsed = 0

    async def update(self, emit: Emit) -> dict[str, IndexedFile]:
        """The files as they are now. `left_out` then counts those beyond MAX_FILES, `parsed` those that were read this time."""
        stats = [stat for stat in await self._sandbox.list_files(".") if language_of(stat.path) and stat.size <= MAX_FILE_BYTES]
        stats.sort(key=lambda stat: (stat.path.count("/"), stat.path))
        self.left_out = max(0, len(stats) - MAX_FILES)
        stats = stats[:MAX_FILES]
        stale = [stat for stat in stats if (known := self._files.get(stat.path)) is None or known.version != version_of(stat)]
        current = {stat.path for stat in stats}
        gone = self._files.keys() - current
        for path in gone:
            del self._files[path]
        for start in range(0, len(stale), READS_AT_ONCE):
            read = await asyncio.gather(*(self._index(stat) for stat in stale[start : start + READS_AT_ONCE]))
            for stat, file in zip(stale[start:], read, strict=False):
                if file is not None:
                    self._files[stat.path] = file
                else:
                    self._files.pop(stat.path, None)
            if start and start % (READS_AT_ONCE * 32) == 0:
                emit(f"{start} of {len(stale)} files read\n")
        self.parsed = len(stale)
        if stale or gone:
            self._graph = None
        return self._files

    async def _index(self, stat: FileStat) -> IndexedFile | None:
        """None when it was deleted or made unreadable since it was listed."""
        try:
            data = (await self._sandbox.read(stat.path, max_bytes=MAX_FILE_BYTES)).data
        except FileError:
            return None
        text = data.decode(errors="replace")
        lines = text.split("\n")
        defined = tuple(shown(symbol, lines) for symbol in outer_symbols(symbols(stat.path, text)))
        return IndexedFile(stat.path, version_of(stat), defined, frozenset(_WORD.findall(text)))

    def graph(self) -> Graph:
        """Of the files at the last update."""
        if self._graph is None:
            self._graph = connect(self._files)
        return self._graph


def version_of(stat: FileStat) -> tuple[int, int]:
    return (stat.mtime_ns, stat.size)


def outer_symbols(found: tuple[Symbol, ...]) -> list[Symbol]:
    """Without those inside functions."""
    inside = {symbol.qualified for symbol in found if symbol.kind in {"function", "method"}}
    return [symbol for symbol in found if symbol.qualified.rpartition(".")[0] not in inside]


def shown(symbol: Symbol, lines: list[str]) -> Defined:
    signature = lines[symbol.core_line - 1].strip().rstrip("{").rstrip(" :")
    if len(signature) > SIGNATURE_CHARS:
        signature = signature[:SIGNATURE_CHARS] + "…"
    depth = symbol.qualified.count(".")
    return Defined(symbol.name, symbol.qualified, symbol.start_line, symbol.end_line, depth, signature)


def connect(files: dict[str, IndexedFile]) -> Graph:
    """An edge from each file to those that define what it uses; a rare name of one place weighs most."""
    homes: defaultdict[str, set[str]] = defaultdict(set)
    for file in files.values():
        for entry in file.defined:
            homes[entry.name].add(file.path)
    names = homes.keys()
    users: Counter[str] = Counter()
    used: dict[str, frozenset[str]] = {}
    for file in files.values():
        used[file.path] = file.words & names
        users.update(used[file.path])
    edges: dict[str, dict[str, float]] = {}
    for path, found in used.items():
        targets: defaultdict[str, float] = defaultdict(float)
        for name in found:
            places = homes[name]
            if len(places) > MAX_DEFINERS or path in places or name.startswith("_"):
                continue
            weight = math.log1p(len(files) / users[name]) / len(places) ** 2
            for place in places:
                targets[place] += weight
        edges[path] = dict(targets)
    return Graph(edges, {name: tuple(sorted(places)) for name, places in homes.items()}, users)


def rank(files: dict[str, IndexedFile], graph: Graph, mentioned: frozenset[str]) -> list[str]:
    """Paths, the most relevant first: weight flows along the edges, and starts where the task points."""
    if not files:
        return []
    start = {path: 1.0 + boost(file, graph, mentioned) for path, file in files.items()}
    total = sum(start.values())
    start = {path: weight / total for path, weight in start.items()}
    flow = {path: (1 / sum(targets.values()), targets) for path, targets in graph.edges.items() if targets}
    weights = start
    for _ in range(ROUNDS):
        loose = sum(weight for path, weight in weights.items() if path not in flow)
        following = {path: (1 - DAMPING + DAMPING * loose) * weight for path, weight in start.items()}
        for path, (share, targets) in flow.items():
            given = DAMPING * weights[path] * share
            for target, weight in targets.items():
                following[target] += given * weight
        weights = following
    named = {path for path, file in files.items() if boost(file, graph, mentioned) > 0}

    def key(path: str) -> tuple[bool, float, str]:
        share = TEST_SHARE if TEST_PATH.search(path) else 1.0
        return (path not in named, -weights[path] * share, path)

    return sorted(files, key=key)


def boost(file: IndexedFile, graph: Graph, mentioned: frozenset[str]) -> float:
    """How much the task points to the file: by its path, or by what it defines."""
    if not mentioned:
        return 0.0
    pure = PurePosixPath(file.path)
    found = PATH_BOOST if mentioned & {file.path, pure.name, pure.stem} else 0.0
    for entry in file.defined:
        if entry.name in mentioned or entry.qualified in mentioned:
            found += NAME_BOOST / len(graph.definers[entry.name])
    return found


def chosen(file: IndexedFile, graph: Graph, mentioned: frozenset[str], limit: int) -> Sequence[Defined]:
    """At most `limit` definitions in file order: those of the task, then those that most files use."""

    def key(entry: Defined) -> tuple[bool, int, int]:
        return (entry.name not in mentioned and entry.qualified not in mentioned, entry.depth, -graph.users[entry.name])

    kept = set(sorted(file.defined, key=key)[:limit])
    return [entry for entry in file.defined if entry in kept]
