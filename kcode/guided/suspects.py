"""Which functions may hold the mistake: from the failing tests' frames, what those tests use, and what the task names."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kcode.repomap import TEST_PATH, WORD, SourceFile, is_mentioned
from kcode.tools.symbols import Symbol
from kcode.tools.testing.calls import TestCalls
from kcode.tools.testing.report import FailingTest, Frame

FRAME_WEIGHT = 6.0
# The innermost frame is where it broke; the callers above it are less likely each.
FRAME_DECAY = 0.6
USED_WEIGHT = 4.0
# What a suspect calls is suspected with this share of its weight.
CALLED_SHARE = 0.5
MENTION_WEIGHT = 8.0
# For what the failing tests call and no passing test does.
CALLS_WEIGHT = 12.0
MAX_FUNCTION_LINES = 120
NAME = re.compile(r"[A-Za-z_$][\w$]*")

Weights = defaultdict[tuple[str, Symbol], float]
"""Per file and definition; a property and its setter share a name."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A function that may be wrong, with the file it is in; a larger `weight` is more likely."""

    file: SourceFile
    symbol: Symbol
    weight: float

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def code(self) -> str:
        """The definition without its indentation, decorators included."""
        data = self.file.text.encode()
        line = data.rfind(b"\n", 0, self.symbol.start_byte) + 1
        before = data[line : self.symbol.start_byte].decode()
        return textwrap.dedent(("" if before.strip() else before) + source_of(self.file, self.symbol))

    @property
    def label(self) -> str:
        return f"{self.symbol.qualified} in {self.path}"


def words_of(text: str) -> set[str]:
    """Names and paths a text mentions."""
    return set(WORD.findall(text)) | set(re.findall(r"[\w./-]+\.\w+", text))


def find_suspects(
    files: Sequence[SourceFile], task: str, failing: Sequence[FailingTest], limit: int, calls: Sequence[TestCalls] = ()
) -> list[Suspect]:
    """The likeliest functions first, at most `limit`; tests themselves are never suspected.

    When `calls` tell what the failing tests called, nothing else is suspected but what the task names.
    """
    by_path = {file.path: file for file in files}
    code = [file for file in files if not TEST_PATH.search(file.path)]
    mentioned = words_of(task)
    used = used_by_tests(by_path, failing)
    weights: Weights = defaultdict(float)
    for test in failing:
        weight = FRAME_WEIGHT / len(failing)
        for frame in reversed(test.frames):
            symbol = at_line(by_path.get(frame.path), frame.line)
            if symbol is not None and not TEST_PATH.search(frame.path):
                weights[frame.path, symbol] += weight
                weight *= FRAME_DECAY
    for file in code:
        for symbol in functions(file):
            weights[file.path, symbol] += static_weight(file, symbol, used, mentioned)
    spread_to_callees(code, weights)
    called = suspicion(by_path, failing, calls)
    if called:
        for (path, symbol), weight in weights.items():
            share = called.get((path, symbol), 0.0)
            weights[path, symbol] = weight + CALLS_WEIGHT * share if share or symbol.name in mentioned else 0.0
    found = [Suspect(by_path[path], symbol, weight) for (path, symbol), weight in weights.items() if weight > 0]
    found.sort(key=lambda suspect: (-suspect.weight, suspect.path, suspect.symbol.start_line))
    return found[:limit]


def suspicion(
    by_path: dict[str, SourceFile], failing: Sequence[FailingTest], calls: Sequence[TestCalls]
) -> dict[tuple[str, Symbol], float]:
    """From 0 to 1 for each function that failing tests called: 1 when all of them did and no passing test (Ochiai's measure)."""
    ids = {test.id for test in failing}
    failed = [test for test in calls if test.failed and test.test in ids]
    in_failed, in_passed = (
        Counter(symbol for test in tests for symbol in called_by(by_path, test))
        for tests in (failed, [test for test in calls if not test.failed])
    )
    return {key: count / math.sqrt(len(failed) * (count + in_passed[key])) for key, count in in_failed.items()}


def called_by(by_path: dict[str, SourceFile], test: TestCalls) -> set[tuple[str, Symbol]]:
    """The functions of the code, inner ones for themselves."""
    found = ((path, at_line(by_path.get(path), line)) for path, line in test.places if not TEST_PATH.search(path))
    return {(path, symbol) for path, symbol in found if symbol is not None}


def functions(file: SourceFile) -> list[Symbol]:
    """What can be rewritten as one piece: functions and methods that are not too long."""
    return [
        symbol
        for symbol in file.symbols
        if symbol.kind in {"function", "method"} and symbol.end_line - symbol.core_line < MAX_FUNCTION_LINES
    ]


def at_line(file: SourceFile | None, line: int) -> Symbol | None:
    """The innermost function around a line."""
    around = [symbol for symbol in functions(file) if symbol.start_line <= line <= symbol.end_line] if file else []
    return min(around, key=lambda symbol: symbol.end_line - symbol.start_line, default=None)


def used_by_tests(by_path: dict[str, SourceFile], failing: Sequence[FailingTest]) -> dict[str, float]:
    """How much each name speaks for the failing tests, from 0 to 1: its share of them against its share of the passing ones."""
    failed = [test_source(by_path, test.frames) or test.message for test in failing]
    places = {
        (frame.path, symbol.start_line)
        for test in failing
        for frame in test.frames
        if (symbol := at_line(by_path.get(frame.path), frame.line))
    }
    passed = [
        source_of(file, symbol)
        for path in {frame.path for test in failing for frame in test.frames}
        if TEST_PATH.search(path) and (file := by_path.get(path))
        for symbol in functions(file)
        if symbol.name.lower().startswith("test") and (path, symbol.start_line) not in places
    ]
    in_failed, in_passed = shares(failed), shares(passed)
    return {name: share / (share + in_passed.get(name, 0.0)) for name, share in in_failed.items()}


def shares(sources: Sequence[str]) -> dict[str, float]:
    """The part of the sources that each name stands in."""
    counts: Counter[str] = Counter()
    for source in sources:
        counts.update(set(NAME.findall(source)))
    return {name: count / len(sources) for name, count in counts.items()}


def source_of(file: SourceFile, symbol: Symbol) -> str:
    return file.text.encode()[symbol.start_byte : symbol.end_byte].decode()


def test_source(by_path: dict[str, SourceFile], frames: Sequence[Frame]) -> str:
    """The code of the test function the frames begin in; "" when it is not known."""
    for frame in frames:
        file = by_path.get(frame.path)
        if file is None or not TEST_PATH.search(frame.path):
            continue
        symbol = at_line(file, frame.line)
        if symbol is not None:
            return source_of(file, symbol)
        lines = file.text.split("\n")
        return "\n".join(lines[max(0, frame.line - 6) : frame.line + 1])
    return ""


def static_weight(file: SourceFile, symbol: Symbol, used: dict[str, float], mentioned: set[str]) -> float:
    weight = USED_WEIGHT * used.get(symbol.name, 0.0)
    if symbol.name in mentioned or symbol.qualified in mentioned:
        weight += MENTION_WEIGHT
    if weight and is_mentioned(file.path, mentioned):
        weight += MENTION_WEIGHT / 2
    return weight


def spread_to_callees(files: Sequence[SourceFile], weights: Weights) -> None:
    """What a suspect calls is suspect too, less so: the assertion names the front door, the mistake may be behind it."""
    for _ in range(2):
        called: dict[str, float] = {}
        for file in files:
            for symbol in functions(file):
                weight = weights[file.path, symbol]
                if weight > 0:
                    body = file.text.encode()[symbol.core_byte : symbol.end_byte].decode()
                    for word in set(NAME.findall(body)) - {symbol.name}:
                        called[word] = max(called.get(word, 0.0), CALLED_SHARE * weight)
        for file in files:
            for symbol in functions(file):
                key = (file.path, symbol)
                weights[key] = max(weights[key], called.get(symbol.name, 0.0))
