"""One tool call in the transcript: a line, and what it did below it."""

from __future__ import annotations

import re
from typing import Literal

from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from kcode.events import DiffDisplay, Display, PlainDisplay, TestsDisplay
from kcode.tui.clean import clean, one_line
from kcode.tui.diff import DiffLine, counts, diff_lines, draw_diff
from kcode.tui.draw import margin, strips
from kcode.tui.figures import duration_text, quantity
from kcode.tui.theme import Look

State = Literal["writing", "running", "done", "failed", "stopped"]
SIGNS: dict[State, str] = {"writing": "✎", "running": "●", "done": "✓", "failed": "✗", "stopped": "◌"}
PATH = re.compile(r'"(?:path|command|pattern)"\s*:\s*"((?:[^"\\]|\\.)*)')
LIVE_LINES = 5
LIVE_CHARS = 16_000
FOLDED_DIFF_LINES = 40
FOLDED_OUTPUT_LINES = 3
FOLDED_ERROR_LINES = 8
SHOWN_LINES = 2000
BODY = "   │ "


class Call:
    """A call from its first written token to its result.

    Live output keeps its last LIVE_CHARS characters only; a result shows at most SHOWN_LINES lines.
    """

    def __init__(self, name: str) -> None:
        self.revision = 0
        self.name = one_line(name)
        self.summary = ""
        self.state: State = "writing"
        self.expanded = False
        self.duration_s = 0.0
        self.display: Display | None = None
        self._arguments = ""
        self._live = ""
        self._diff: list[DiffLine] = []

    @property
    def foldable(self) -> bool:
        return self.display is not None or bool(self._live)

    @property
    def compact(self) -> bool:
        if self.expanded or self._live:
            return False
        return isinstance(self.display, PlainDisplay | None) and not self._folded_output()

    def write(self, name: str, arguments: str) -> None:
        self.name = one_line(self.name or name)
        self._arguments += arguments
        self.revision += 1

    def start(self, summary: str) -> None:
        self.summary, self.state = one_line(summary), "running"
        self.revision += 1

    def output(self, text: str) -> None:
        self._live = (self._live + text)[-LIVE_CHARS:]
        self.revision += 1

    def finish(self, display: Display, is_error: bool, duration_s: float) -> None:
        self.display, self.duration_s, self._live = display, duration_s, ""
        self.state = "failed" if is_error else "done"
        if isinstance(display, DiffDisplay):
            self._diff = diff_lines(display.old, display.new)
        self.revision += 1

    def stop(self) -> None:
        """It will get no result."""
        if self.state in {"writing", "running"}:
            self.state = "stopped"
            self.revision += 1

    def toggle(self, expanded: bool | None = None) -> None:
        self.expanded = not self.expanded if expanded is None else expanded
        self.revision += 1

    def draw(self, width: int, look: Look) -> list[Strip]:
        tone: Style = {"done": look.good, "failed": look.bad, "running": look.accent}.get(self.state, look.dim)
        head = margin(strips(self._head(look), max(1, width - 4), look), f" {SIGNS[self.state]} ", "   ", tone)
        body = self._body(max(8, width - len(BODY)), look)
        return head + margin(body, BODY, BODY, look.faint)

    def _head(self, look: Look) -> Text:
        words = self.summary or self._written()
        first, _, rest = words.partition(" ")
        text = Text.assemble((first, look.bold))
        text.append(f" {rest}" if rest else "", look.text)
        hints = self._hints(look)
        if self.foldable:
            text.append("  ▾ " if self.expanded else "  ▸ ", look.faint)
        elif hints:
            text.append("  ")
        for number, hint in enumerate(hints):
            text.append(" · " if number else "", look.faint)
            text.append_text(hint)
        return text

    def _hints(self, look: Look) -> list[Text]:
        if self.state == "writing":
            return [Text(f"writing, {quantity(len(self._arguments), 'character')}", look.dim)]
        if self.state == "running":
            return [Text("running", look.dim)]
        if self.state == "stopped":
            return [Text("not run" if not self.summary else "stopped", look.warning)]
        hints: list[Text] = []
        match self.display:
            case DiffDisplay():
                added, removed = counts(self._diff)
                hints.append(Text.assemble((f"+{added}", look.good), " ", (f"-{removed}", look.bad)))
            case TestsDisplay(passed=passed, failed=failed):
                hints.append(Text(f"✓ {passed} passed", look.good if passed else look.dim))
                hints.append(Text(f"✗ {failed} failed", look.bad if failed else look.dim))
            case PlainDisplay(text=text):
                lines = len(text.splitlines())
                hints.append(Text(quantity(lines, "line") if lines else "no output", look.dim))
            case None:
                pass
        if self.duration_s > 0:
            hints.append(Text(duration_text(self.duration_s), look.dim))
        return hints

    def _written(self) -> str:
        """What can be told of a call that is still being written."""
        found = PATH.search(self._arguments)
        return f"{self.name} {one_line(found.group(1))}" if found else self.name or "call"

    def _folded_output(self) -> str:
        """What a folded result still shows: the end of what went wrong or was run; nothing of what was read."""
        if not isinstance(self.display, PlainDisplay):
            return ""
        if self.state == "failed":
            return _last(self.display.text, FOLDED_ERROR_LINES)
        return _last(self.display.text, FOLDED_OUTPUT_LINES) if self.name in {"bash", "bash_input"} else ""

    def _body(self, width: int, look: Look) -> list[Strip]:
        match self.display:
            case None:
                return strips(Text(_last(self._live, LIVE_LINES), look.dim), width, look)[-LIVE_LINES:] if self._live else []
            case DiffDisplay(path=path):
                shown = self._diff[:SHOWN_LINES] if self.expanded else self._diff[:FOLDED_DIFF_LINES]
                return draw_diff(shown, path, width, look) + _more(len(self._diff) - len(shown), width, look)
            case TestsDisplay(text=text, failed=failed):
                shown = text if self.expanded else _last(text, FOLDED_ERROR_LINES) if failed else ""
            case PlainDisplay(text=text):
                shown = text if self.expanded else self._folded_output()
        rows = clean(shown).strip("\n").splitlines()
        lines = strips(Text("\n".join(rows[:SHOWN_LINES]), look.dim), width, look) if rows else []
        if not self.expanded:
            limit = FOLDED_OUTPUT_LINES if self.state == "done" and isinstance(self.display, PlainDisplay) else FOLDED_ERROR_LINES
            return lines[-limit:]
        return lines + _more(len(rows) - SHOWN_LINES, width, look)


def _last(text: str, lines: int) -> str:
    """The last lines of `text` without reading all of it."""
    return "\n".join(clean(text[-LIVE_CHARS:]).rstrip("\n").split("\n")[-lines:])


def _more(hidden: int, width: int, look: Look) -> list[Strip]:
    return strips(Text(f"⋯ {quantity(hidden, 'more line')}", look.dim), width, look) if hidden > 0 else []
