"""What the walls stopped, as facts: which rule, on what, and what to do instead. Told to the model once, shown to the user."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

ViolationKind = Literal["network", "write", "read", "held", "limit"]
MAX_TOLD_CHARS = 300


@dataclass(frozen=True, slots=True)
class Violation:
    """`what` names the host, path or amount; `rule` is what forbids it; `advice` never says to try without the walls."""

    kind: ViolationKind
    what: str
    rule: str
    advice: str

    @property
    def sentence(self) -> str:
        return f"{self.rule}: {self.what[:MAX_TOLD_CHARS]}; {self.advice}"


def told(violations: Iterable[Violation]) -> list[str]:
    """Exactly one line for each kind, for whoever reads a command's output."""
    first: dict[ViolationKind, Violation] = {}
    more: dict[ViolationKind, int] = {}
    for violation in dict.fromkeys(violations):
        if first.setdefault(violation.kind, violation) is not violation:
            more[violation.kind] = more.get(violation.kind, 0) + 1
    return [
        f"[sandbox: {violation.sentence}" + (f" ({more[kind]} more like it)]" if kind in more else "]")
        for kind, violation in first.items()
    ]


_collecting: ContextVar[list[Violation] | None] = ContextVar("collecting", default=None)


@contextmanager
def collecting() -> Generator[list[Violation], None, None]:
    """The list gets every violation of what this task, or one that it starts, asks of any sandbox meanwhile."""
    found: list[Violation] = []
    token = _collecting.set(found)
    try:
        yield found
    finally:
        _collecting.reset(token)


def report(violations: Iterable[Violation]) -> None:
    """Hand them to whoever is collecting."""
    found = _collecting.get()
    if found is not None:
        found += violations
