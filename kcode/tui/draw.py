"""From text to lines of the screen: wrapping, markdown, code. Pure: what is drawn depends on the arguments alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from io import StringIO
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme
from textual.strip import Strip

from kcode.tui.theme import Look, syntax_theme

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


def blocks(source: str) -> list[tuple[str, list[Token]]]:
    """The top-level parts of a markdown text: the source and the tokens of each, in order."""
    tokens = _parser().parse(source)
    lines = source.split("\n")
    starts = [number for number, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0 and token.map]
    found: list[tuple[str, list[Token]]] = []
    for place, begin in enumerate(starts):
        end = starts[place + 1] if place + 1 < len(starts) else len(tokens)
        first = _first_line(tokens[begin])
        last = _first_line(tokens[end]) if end < len(tokens) else len(lines)
        found.append(("\n".join(lines[first:last]), tokens[begin:end]))
    return found


def markdown(tokens: list[Token], width: int, look: Look) -> list[Strip]:
    """One part of a markdown text as lines, at most PROSE_WIDTH wide."""
    lines = strips(_Prose(tokens, look), min(width, PROSE_WIDTH), look)
    shown = [number for number, line in enumerate(lines) if line.text.strip()]
    return lines[shown[0] : shown[-1] + 1] if shown else []


def code(source: str, language: str, look: Look) -> Text:
    """Highlighted code without its trailing newline; `language` is a Pygments name or a file name's lexer, "" for none."""
    text = _highlighter(language or "text", look).highlight(source)
    text.rstrip()
    return text


@lru_cache(maxsize=32)
def _highlighter(language: str, look: Look) -> Syntax:
    return Syntax("", language, theme=syntax_theme(look))


@lru_cache(maxsize=256)
def language_of(path: str) -> str:
    """The lexer for a file name, "text" when there is none."""
    return Syntax.guess_lexer(path)


class _Heading(Heading):
    """Left-aligned, whatever its level."""

    LEVEL_ALIGN: ClassVar = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _Fence(CodeBlock):
    """Code on a quiet background; long lines are wrapped, never cut."""

    look: Look

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _Fence:
        assert isinstance(markdown, _Prose)
        fence = cls((token.info or "").partition(" ")[0] or "text", "default")
        fence.look = markdown.look
        return fence

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = code(str(self.text).rstrip(), self.lexer_name, self.look)
        text.style = ""
        yield Padding(text, (0, 1), style="markdown.code_block", expand=True)


class _Prose(Markdown):
    """Markdown from tokens that are parsed already."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _Fence,
        "code_block": _Fence,
    }

    def __init__(self, tokens: list[Token], look: Look) -> None:
        # The base would build a parser and parse for every part.
        self.markup = ""
        self.parsed = tokens
        self.code_theme = self.inline_code_theme = "default"
        self.justify = None
        self.style = "none"
        self.hyperlinks = False
        self.inline_code_lexer = None
        self.look = look


def _first_line(token: Token) -> int:
    assert token.map is not None
    return token.map[0]


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    # Raw HTML is shown as it is: an answer about a web page must not lose its tags.
    return MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")


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
