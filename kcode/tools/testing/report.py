"""What a run of a project's tests tells: counts, and of each failing test what one needs to find the cause."""

from __future__ import annotations

from dataclasses import dataclass, field

from kcode.tools.testing.calls import TestCalls
from kcode.tools.truncate import TEST_CHARS

MAX_SHOWN = 8
MESSAGE_CHARS = 900
FRAMES_SHOWN = 4
SOURCE_CHARS = 160


@dataclass(frozen=True, slots=True)
class Frame:
    """A place in the workspace; `path` is relative to it, `source` the line's text, stripped ("" when unknown)."""

    path: str
    line: int
    function: str
    source: str


@dataclass(frozen=True, slots=True)
class FailingTest:
    """`message` is the assertion with its values, or the exception's type and message. `frames` run outermost first."""

    id: str
    message: str
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """What a parser finds in a run's output; `running` is the test under way when the output ended."""

    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0
    failing: tuple[FailingTest, ...] = ()
    running: str = ""

    @property
    def count(self) -> int:
        return self.passed + self.failed + self.errors + self.skipped


@dataclass(frozen=True, slots=True)
class TestReport:
    """One run. `problem` is set when the run itself went wrong: no tests found, timeout, a crash; `log` is its path inside.

    `calls` is what the tests called; empty when nobody asked for it or it cannot be known.
    """

    __test__ = False

    command: str
    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0
    failing: tuple[FailingTest, ...] = ()
    problem: str = ""
    log: str = ""
    duration_s: float = 0.0
    output_tail: str = field(default="", repr=False)
    calls: tuple[TestCalls, ...] = field(default=(), repr=False)

    @property
    def ok(self) -> bool:
        """Tests ran and all passed (or were skipped)."""
        return not self.problem and not self.failed and not self.errors and self.passed > 0

    @property
    def counts(self) -> str:
        """E.g. "2 failed, 1 error, 10 passed, 3 skipped"."""
        named = [
            (self.failed, "failed"),
            (self.errors, "error" if self.errors == 1 else "errors"),
            (self.passed, "passed"),
            (self.skipped, "skipped"),
        ]
        parts = [f"{count} {name}" for count, name in named if count]
        return ", ".join(parts) or "no tests ran"

    def text(self, limit: int = TEST_CHARS) -> str:
        """For the model, at most about `limit` characters."""
        head = f"{self.command}: {self.counts} ({self.duration_s:.1f} s)" if self.command else ""
        pieces = [part for part in (head, self.problem) if part]
        if not self.failing and self.output_tail:
            pieces.append(self.output_tail[-(limit - 300) :])
        rest = f"\n[whole output: {self.log}]" if self.log and (self.failing or self.problem) else ""
        used = sum(len(piece) for piece in pieces) + len(rest)
        shown = 0
        for test in self.failing[:MAX_SHOWN]:
            block = describe(test)
            if shown and used + len(block) > limit:
                break
            pieces.append("\n" + block[: max(limit - used, 400)])
            used += len(block) + 2
            shown += 1
        hidden = self.failing[shown:]
        if hidden:
            names = ", ".join(test.id for test in hidden[:5])
            pieces.append(f"\n[{len(hidden)} more failing: {names}{', …' if len(hidden) > 5 else ''}]")
        return "\n".join(pieces) + rest


def describe(test: FailingTest) -> str:
    """The test, the way to the failure inside the workspace, and what went wrong."""
    lines = [f"FAILED {test.id}"]
    frames = test.frames if len(test.frames) <= FRAMES_SHOWN else (test.frames[0], *test.frames[-(FRAMES_SHOWN - 1) :])
    for frame in frames:
        where = f"{frame.path}:{frame.line}" + (f" in {frame.function}" if frame.function else "")
        lines.append(f"  {where}" + (f": {frame.source[:SOURCE_CHARS]}" if frame.source else ""))
    message = test.message.strip()
    if len(message) > MESSAGE_CHARS:
        message = message[: MESSAGE_CHARS * 2 // 3] + " […] " + message[-MESSAGE_CHARS // 3 :]
    lines += [f"  {line}" for line in message.split("\n")]
    return "\n".join(lines)
