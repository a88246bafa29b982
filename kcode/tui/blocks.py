"""The parts of a transcript. Each draws itself to lines for a width; nothing here knows a screen.

`revision` grows with every change, so whoever keeps drawn lines knows when they are stale. `compact` parts of one line stand
together without a blank line between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from kcode.tui.clean import clean, one_line
from kcode.tui.draw import PROSE_WIDTH, filled, margin, strips
from kcode.tui.theme import Look

if TYPE_CHECKING:
    from markdown_it.token import Token

MARGIN = "   "
THINKING_TAIL_LINES = 4
THINKING_TAIL_CHARS = 2000


class Block(Protocol):
    """`foldable` parts have something to hide or show; `toggle` is a no-op on others."""

    @property
    def revision(self) -> int: ...

    @property
    def compact(self) -> bool: ...

    @property
    def foldable(self) -> bool: ...

    def toggle(self, expanded: bool | None = None) -> None:
        """Show or hide; None turns to the other state."""
        ...

    def draw(self, width: int, look: Look) -> list[Strip]: ...


class Said:
    """What the user said, on a panel."""

    revision = 0
    compact = False
    foldable = False

    def __init__(self, text: str) -> None:
        self.text = clean(text)

    def toggle(self, expanded: bool | None = None) -> None:
        return

    def draw(self, width: int, look: Look) -> list[Strip]:
        lines = margin(strips(Text(self.text), max(1, width - 4), look), " ❯ ", MARGIN, look.accent + Style(bold=True))
        return filled(lines, width, look.user)


class Remark:
    """A notice or the end line of a turn: a sign and a sentence. `tone` names a style of the Look."""

    revision = 0
    foldable = False

    def __init__(self, sign: str, text: str, tone: str, compact: bool = False) -> None:
        self.sign, self.text, self.tone, self.compact = sign, clean(text), tone, compact

    def toggle(self, expanded: bool | None = None) -> None:
        return

    def draw(self, width: int, look: Look) -> list[Strip]:
        style: Style = {"good": look.good, "bad": look.bad, "warning": look.warning, "accent": look.accent}.get(
            self.tone, look.dim
        )
        body = style if self.tone in {"bad", "warning"} else look.dim
        lines = strips(Text(self.text, body), max(1, min(width, PROSE_WIDTH) - 3), look)
        return margin(lines, f" {self.sign} ", MARGIN, style)


class Thinking:
    """Reasoning: its last lines while it comes, one line when it is over, all of it when unfolded."""

    compact = False
    foldable = True

    def __init__(self) -> None:
        self.revision = 0
        self.text = ""
        self.duration_s: float | None = None
        self.expanded = False

    def append(self, text: str) -> None:
        self.text += text
        self.revision += 1

    def finish(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self.revision += 1

    def toggle(self, expanded: bool | None = None) -> None:
        self.expanded = not self.expanded if expanded is None else expanded
        self.revision += 1

    def draw(self, width: int, look: Look) -> list[Strip]:
        italic = look.dim + Style(italic=True)
        words = len(self.text.split())
        if self.duration_s is None:
            head = "Thinking"
        else:
            head = f"Thought for {self.duration_s:.0f} s" if self.duration_s >= 1 else "Thought"
        count = f"{words:,} word{'' if words == 1 else 's'}"
        fold = "▾" if self.expanded else "▸"
        lines = margin(strips(Text(f"{head}  {fold} {count}", look.dim), max(1, width - 3), look), " ✻ ", MARGIN, look.dim)
        if self.expanded:
            shown = self.text.strip()
        elif self.duration_s is None:
            shown = self.text[-THINKING_TAIL_CHARS:].strip()
        else:
            return lines
        body = strips(Text(clean(shown), italic), max(1, min(width, PROSE_WIDTH) - 5), look) if shown else []
        if not self.expanded:
            body = body[-THINKING_TAIL_LINES:]
        return lines + margin(body, " │ ", " │ ", look.faint)


class Answer:
    """The model's text as markdown. Parts that more text cannot change are drawn once."""

    compact = False
    foldable = False

    def __init__(self, text: str = "") -> None:
        self.revision = 0
        self._parts: list[str] = []
        self._tail = clean(text)
        self._done: list[Strip] = []
        self._drawn_parts = 0
        self._drawn_for: tuple[int, Look] | None = None

    @property
    def text(self) -> str:
        return "\n\n".join([*self._parts, self._tail])

    def append(self, text: str) -> None:
        self._tail += clean(text)
        self.revision += 1

    def toggle(self, expanded: bool | None = None) -> None:
        return

    def draw(self, width: int, look: Look) -> list[Strip]:
        from kcode.tui.prose import blocks

        if self._drawn_for != (width, look):
            self._done, self._drawn_parts, self._drawn_for = [], 0, (width, look)
        for source in self._parts[self._drawn_parts :]:
            for _, tokens in blocks(source):
                self._done += self._draw_part(tokens, width, look, below=bool(self._done))
        found = blocks(self._tail)
        for source, tokens in found[:-1]:
            self._parts.append(source)
            self._done += self._draw_part(tokens, width, look, below=bool(self._done))
        if len(found) > 1:
            self._tail = found[-1][0]
        self._drawn_parts = len(self._parts)
        return self._done + (self._draw_part(found[-1][1], width, look, below=bool(self._done)) if found else [])

    def _draw_part(self, tokens: list[Token], width: int, look: Look, *, below: bool) -> list[Strip]:
        from kcode.tui.prose import markdown

        lines = markdown(tokens, max(1, width - 4), look)
        if lines and below:
            lines.insert(0, Strip.blank(0))
        return margin(lines, MARGIN, MARGIN, look.text)


class Listing:
    """Lines of help or information, as they are."""

    revision = 0
    compact = False
    foldable = False

    def __init__(self, rows: list[tuple[str, str]]) -> None:
        self.rows = [(one_line(left), one_line(right)) for left, right in rows]

    def toggle(self, expanded: bool | None = None) -> None:
        return

    def draw(self, width: int, look: Look) -> list[Strip]:
        wide = max([len(left) for left, _ in self.rows], default=0) + 2
        lines: list[Strip] = []
        for left, right in self.rows:
            body = strips(Text(right, look.dim), max(8, width - wide - 4), look) or [Strip.blank(0)]
            lines += margin(body, MARGIN + left.ljust(wide), MARGIN + " " * wide, look.text)
        return lines
