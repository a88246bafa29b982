"""The status line: model, context, speed, time, sandbox, approval; what is least needed leaves first on narrow screens."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.text import Text
from textual.widget import Widget

from kcode.tui.clean import one_line
from kcode.tui.figures import bar_text, clock_text
from kcode.tui.theme import Look, look_of

NEARLY_FULL = 0.85


@dataclass(frozen=True, slots=True)
class Facts:
    """What the line tells. `context_limit` is None where the server does not say; 0 and "" mean not known yet."""

    model: str = ""
    context_used: int = 0
    context_limit: int | None = None
    tokens_per_s: float = 0.0
    elapsed_s: float = 0.0
    sandbox: str = ""
    approval: str = ""
    violations: int = 0
    """How often the sandbox stopped something."""


class Status(Widget):
    DEFAULT_CSS = """
    Status { height: 1; background: $background; padding: 0 1; }
    """

    def __init__(self, facts: Facts, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.facts = facts

    def tell(self, facts: Facts) -> None:
        if facts != self.facts:
            self.facts = facts
            self.refresh()

    def update_time(self, tokens_per_s: float, elapsed_s: float) -> None:
        self.tell(replace(self.facts, tokens_per_s=tokens_per_s, elapsed_s=elapsed_s))

    def render(self) -> Text:
        look = look_of(self.app.theme_variables)
        return status_text(self.facts, self.content_size.width, look)


def status_text(facts: Facts, width: int, look: Look) -> Text:
    """The parts that fit, in a fixed order. The context meter is the last to go."""
    sandbox = [one_line(part) for part in facts.sandbox.split("·")]
    short_sandbox = next((part for part in sandbox if part in {"read-only", "workspace-write", "danger-full-access"}), sandbox[0])
    unsafe = "danger-full-access" in facts.sandbox
    parts: list[tuple[int, Text]] = [
        (2, Text(one_line(facts.model) or "no model", look.accent if facts.model else look.warning)),
        (1, _context(facts, look, 10 if width >= 90 else 0)),
    ]
    if facts.tokens_per_s > 0:
        parts.append((5, Text(f"{facts.tokens_per_s:.1f} tok/s", look.dim)))
    if facts.elapsed_s >= 1:
        parts.append((6, Text(clock_text(facts.elapsed_s), look.dim)))
    if facts.sandbox:
        shown = " · ".join(sandbox) if width >= 130 else short_sandbox
        parts.append((3, Text(f"{'⚠' if unsafe else '▣'} {shown}", look.bad if unsafe else look.dim)))
    if facts.violations:
        parts.append((3, Text(f"⊘ {facts.violations} stopped", look.warning)))
    if facts.approval:
        parts.append((4, Text(f"{facts.approval}", look.dim)))
    while len(parts) > 1 and sum(text.cell_len for _, text in parts) + 3 * (len(parts) - 1) > width:
        parts.remove(max(parts, key=lambda part: part[0]))
    line = Text(" │ ", look.faint).join(text for _, text in parts)
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line


def _context(facts: Facts, look: Look, bar_cells: int) -> Text:
    if facts.context_limit is None:
        return Text(f"{facts.context_used:,} tokens", look.dim)
    share = facts.context_used / facts.context_limit if facts.context_limit else 0.0
    style = look.warning if share >= NEARLY_FULL else look.dim
    text = Text()
    if bar_cells:
        text.append(bar_text(facts.context_used, facts.context_limit, bar_cells) + " ", style)
    text.append(f"{facts.context_used:,}/{facts.context_limit:,} tokens", style)
    if share >= NEARLY_FULL:
        text.append(f" ({share:.0%} full)", style)
    return text
