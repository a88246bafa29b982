"""Differences as lines of the screen: numbers, signs, words that changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from kcode.tui.clean import clean
from kcode.tui.draw import code, filled, language_of, strips
from kcode.tui.theme import Look

CONTEXT_LINES = 3
WORDS = re.compile(r"\w+|\s+|[^\w\s]")
MAX_WORD_LINE = 400
"""Longer lines are marked whole: comparing their words costs more than it tells."""
Sign = Literal[" ", "-", "+", "…"]


@dataclass(frozen=True, slots=True)
class DiffLine:
    """One line; `number` counts in the new file, for removed lines in the old one. `words` are changed spans of `text`."""

    sign: Sign
    number: int
    text: str
    words: tuple[tuple[int, int], ...] = ()


def counts(lines: list[DiffLine]) -> tuple[int, int]:
    """Lines added and lines removed."""
    return sum(line.sign == "+" for line in lines), sum(line.sign == "-" for line in lines)


def diff_lines(old: str, new: str, context: int = CONTEXT_LINES) -> list[DiffLine]:
    """The changed places of a file with `context` lines around; a line with sign "…" stands between distant places."""
    before, after = clean(old).splitlines(), clean(new).splitlines()
    found: list[DiffLine] = []
    for group in _matcher(before, after).get_grouped_opcodes(context):
        if found:
            found.append(DiffLine("…", 0, ""))
        for tag, old_from, old_to, new_from, new_to in group:
            if tag == "equal":
                found += [DiffLine(" ", new_from + at + 1, after[new_from + at]) for at in range(new_to - new_from)]
                continue
            removed, added = before[old_from:old_to], after[new_from:new_to]
            pairs = [_words(a, b) for a, b in zip(removed, added, strict=False)] if len(removed) == len(added) else []
            for at, text in enumerate(removed):
                found.append(DiffLine("-", old_from + at + 1, text, pairs[at][0] if pairs else ()))
            for at, text in enumerate(added):
                found.append(DiffLine("+", new_from + at + 1, text, pairs[at][1] if pairs else ()))
    return found


def draw_diff(lines: list[DiffLine], path: str, width: int, look: Look, min_digits: int = 1) -> list[Strip]:
    """`lines` with numbers and signs; long lines are wrapped, never cut."""
    digits = max([len(str(line.number)) for line in lines] + [min_digits])
    language = language_of(path)
    drawn: list[Strip] = []
    for line, text in zip(lines, _highlighted(lines, language, look), strict=True):
        if line.sign == "…":
            drawn += strips(Text(f"{'⋯':>{digits}}", look.faint), width, look)
            continue
        style, word = _styles(line.sign, look)
        for begin, end in line.words:
            text.stylize(word, begin, end)
        number_style = look.dim if line.sign == " " else style
        gutter = Text(f"{line.number:>{digits}} {line.sign} ", number_style)
        body = strips(text, max(8, width - digits - 3), look)
        for row, strip in enumerate(body or [Strip.blank(0)]):
            head = strips(gutter if row == 0 else Text(" " * (digits + 3), number_style), digits + 3, look)[0]
            joined = Strip.join([head.adjust_cell_length(digits + 3), strip])
            drawn += filled([joined], width, style) if line.sign != " " else [joined]
    return drawn


def draw_patch(patch: str, width: int, look: Look) -> list[Strip]:
    """A unified diff in the text form that git prints."""
    drawn: list[Strip] = []
    for line in clean(patch).splitlines():
        if line.startswith(("diff ", "index ", "--- ", "+++ ", "new file", "deleted file", "similarity", "rename ")):
            drawn += strips(Text(line, look.bold if line.startswith("diff ") else look.dim), width, look)
        elif line.startswith("@@"):
            drawn += strips(Text(line, look.accent), width, look)
        elif line.startswith(("+", "-")):
            style = look.added if line[0] == "+" else look.removed
            drawn += filled(strips(Text(line), width, look), width, style)
        else:
            drawn += strips(Text(line, look.text), width, look)
    return drawn


def _styles(sign: Sign, look: Look) -> tuple[Style, Style]:
    if sign == "+":
        return look.added, look.added_word
    if sign == "-":
        return look.removed, look.removed_word
    return look.text, look.text


def _matcher(before: list[str], after: list[str]) -> SequenceMatcher[str]:
    # Without autojunk the comparison is exact but quadratic on big files with many equal lines.
    return SequenceMatcher(None, before, after, autojunk=len(before) * len(after) > 4_000_000)


def _words(old: str, new: str) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Changed spans of two lines; nothing when they have little in common, for then marking words only distracts."""
    if max(len(old), len(new)) > MAX_WORD_LINE:
        return (), ()
    left, right = WORDS.findall(old), WORDS.findall(new)
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    if matcher.ratio() < 0.5:
        return (), ()
    codes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    return (
        tuple(_span(left, begin, end) for _, begin, end, _, _ in codes if end > begin),
        tuple(_span(right, begin, end) for _, _, _, begin, end in codes if end > begin),
    )


def _span(words: list[str], begin: int, end: int) -> tuple[int, int]:
    start = sum(map(len, words[:begin]))
    return start, start + sum(map(len, words[begin:end]))


def _highlighted(lines: list[DiffLine], language: str, look: Look) -> Iterator[Text]:
    """The text of each line in syntax colours. The shown lines are read as one piece: cheap, and right nearly always."""
    if language == "text" or not lines:
        yield from (Text(line.text, "") for line in lines)
        return
    whole = code("\n".join(line.text for line in lines), language, look)
    rows = whole.split("\n", allow_blank=True)
    for number, line in enumerate(lines):
        row = rows[number] if number < len(rows) else Text(line.text)
        row.style = ""
        row.no_wrap = False  # A single line comes out of the highlighter as one that is cut.
        yield row if row.plain == line.text else Text(line.text)
