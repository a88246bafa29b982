"""From text to lines of the screen: wrapping, margins, code. Pure: what is drawn depends on the arguments alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from rich.theme import Theme
from textual.strip import Strip

from kcode.tui.theme import Look, syntax_theme

if TYPE_CHECKING:
    from rich.syntax import Syntax

PROSE_WIDTH = 112
"""Lines of prose longer than this are hard to read; wide terminals get a margin."""


def strips(content: RenderableType, width: int, look: Look) -> list[Strip]:
    """`content` wrapped to `width` cells, at least one cell."""
    console = _console(look)
    if isinstance(content, Text) and "\n" not in content.plain and content.cell_len <= width:
        return [Strip(Segment.simplify(content.render(console)))]
    options = console.options.update(width=max(1, width), height=None, highlight=False)
    return [Strip(Segment.simplify(line)) for line in console.render_lines(content, options, pad=False)]


def margin(lines: Sequence[Strip], first: str, rest: str, style: Style) -> list[Strip]:
    """`lines` with `first` before the first and `rest` before the others."""
    head, body = Strip([Segment(first, style)]), Strip([Segment(rest, style)])
    return [Strip.join([head if number == 0 else body, line]) for number, line in enumerate(lines)]


def filled(lines: Sequence[Strip], width: int, style: Style) -> list[Strip]:
    """`lines` on a background as wide as the screen."""
    return [Strip(list(Segment.apply_style(line.adjust_cell_length(width), style)), width) for line in lines]


def code(source: str, language: str, look: Look) -> Text:
    """Highlighted code without its trailing newline; `language` is a Pygments name or a file name's lexer, "" for none."""
    text = _highlighter(language or "text", look).highlight(source)
    text.rstrip()
    return text


@lru_cache(maxsize=32)
def _highlighter(language: str, look: Look) -> Syntax:
    from rich.syntax import Syntax  # takes long, and the first picture holds no code

    return Syntax("", language, theme=syntax_theme(look))


@lru_cache(maxsize=256)
def language_of(path: str) -> str:
    """The lexer for a file name, "text" when there is none."""
    from rich.syntax import Syntax

    return Syntax.guess_lexer(path)


@lru_cache(maxsize=8)
def _console(look: Look) -> Console:
    theme = Theme(
        {
            "markdown.h1": look.heading + Style(underline=True),
            "markdown.h2": look.heading,
            "markdown.h3": look.bold,
            "markdown.h4": look.bold,
            "markdown.h5": look.bold,
            "markdown.h6": look.dim,
            "markdown.code": look.code,
            "markdown.code_block": look.code_block,
            "markdown.block_quote": look.dim,
            "markdown.hr": look.faint,
            "markdown.item.bullet": look.accent,
            "markdown.item.number": look.accent,
            "markdown.list": look.text,
            "markdown.link": look.accent,
            "markdown.link_url": look.dim + Style(underline=True),
            "markdown.strong": Style(bold=True),
            "markdown.em": Style(italic=True),
            "markdown.table.header": look.bold,
            "markdown.table.border": look.faint,
        }
    )
    return Console(file=StringIO(), force_terminal=True, color_system="truecolor", theme=theme, legacy_windows=False, width=80)
