"""Markdown as lines of the screen. Imported when the first answer is drawn: its parser takes long to import."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.padding import Padding
from textual.strip import Strip

from kcode.tui.draw import PROSE_WIDTH, code, strips
from kcode.tui.theme import Look


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
