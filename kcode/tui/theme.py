"""The colours: two designed themes, and the styles that the transcript is drawn with.

Meaning never hangs on a colour: every state also has its own sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from rich.color import Color
from rich.style import Style
from textual.theme import Theme

if TYPE_CHECKING:
    from rich.syntax import ANSISyntaxTheme

DARK = Theme(
    name="kcode-dark",
    dark=True,
    primary="#6cb6ff",
    secondary="#b8a1f5",
    accent="#e8b26a",
    success="#5cc8a8",
    warning="#e8b26a",
    error="#f47f6b",
    foreground="#d3dae3",
    background="#0e1116",
    surface="#151a21",
    panel="#1b222b",
    variables={
        "added": "#10302b",
        "added-word": "#1d5a4d",
        "removed": "#3a1f1e",
        "removed-word": "#7a3530",
        "dim": "#7d8896",
        "faint": "#4a5461",
        "block-cursor-background": "#26405c",
        "block-cursor-foreground": "#e6edf5",
        "input-selection-background": "#2b4a6b",
    },
)
LIGHT = Theme(
    name="kcode-light",
    dark=False,
    primary="#0b62b5",
    secondary="#6b46b8",
    accent="#925d0a",
    success="#0c7a5f",
    warning="#925d0a",
    error="#b8331f",
    foreground="#22282f",
    background="#fbfbf9",
    surface="#f2f2ee",
    panel="#e9e9e4",
    variables={
        "added": "#dff2ea",
        "added-word": "#a9dcc8",
        "removed": "#fae3dd",
        "removed-word": "#f0b4a6",
        "dim": "#69727d",
        "faint": "#b3b8be",
        "block-cursor-background": "#cfe1f5",
        "block-cursor-foreground": "#10151b",
        "input-selection-background": "#bcd7f2",
    },
)


@dataclass(frozen=True, slots=True)
class Look:
    """The styles of drawn lines. Two looks of one theme are equal."""

    text: Style
    bold: Style
    dim: Style
    faint: Style
    accent: Style
    user: Style
    good: Style
    bad: Style
    warning: Style
    code: Style
    code_block: Style
    heading: Style
    added: Style
    added_word: Style
    removed: Style
    removed_word: Style
    cursor: Style
    keyword: Style
    string: Style
    number: Style
    function: Style


def look_of(variables: Mapping[str, str]) -> Look:
    """The look of a Textual theme's variables; themes without our own variables get near ones."""
    return _look(tuple(variables.items()))


@lru_cache(maxsize=8)
def _look(items: tuple[tuple[str, str], ...]) -> Look:
    variables = dict(items)

    def paint(front: str | None = None, back: str | None = None, *, bold: bool = False, italic: bool | None = None) -> Style:
        color = variables.get(front, variables["foreground"]) if front else None
        behind = variables.get(back, variables["panel"]) if back else None
        return Style.from_color(_color(color), _color(behind)) + Style(bold=bold or None, italic=italic)

    dim = "dim" if "dim" in variables else "foreground-muted"
    faint = "faint" if "faint" in variables else "foreground-disabled"
    return Look(
        text=paint("foreground"),
        bold=paint("foreground", bold=True),
        dim=paint(dim),
        faint=paint(faint),
        accent=paint("primary"),
        user=paint("foreground", "panel"),
        good=paint("success"),
        bad=paint("error"),
        warning=paint("warning"),
        code=paint("accent"),
        code_block=paint("foreground", "surface"),
        heading=paint("primary", bold=True),
        added=paint("foreground", "added" if "added" in variables else "success-muted"),
        added_word=paint("foreground", "added-word" if "added-word" in variables else "success-muted", bold=True),
        removed=paint("foreground", "removed" if "removed" in variables else "error-muted"),
        removed_word=paint("foreground", "removed-word" if "removed-word" in variables else "error-muted", bold=True),
        cursor=paint(back="panel"),
        keyword=paint("secondary"),
        string=paint("success"),
        number=paint("accent"),
        function=paint("primary"),
    )


def syntax_theme(look: Look) -> ANSISyntaxTheme:
    """Code in the colours of `look`."""
    # Highlighters take long to import, and the first picture holds no code.
    from pygments.token import Comment, Generic, Keyword, Name, Number, Operator, String
    from rich.syntax import ANSISyntaxTheme

    styles: dict[tuple[str, ...], Style] = {}

    def put(token: tuple[str, ...], style: Style) -> None:
        styles[tuple(token)] = style

    put(Comment, look.dim + Style(italic=True))
    put(Keyword, look.keyword)
    put(Operator.Word, look.keyword)
    put(Number, look.number)
    put(String, look.string)
    put(Name.Function, look.function)
    put(Name.Class, look.function)
    put(Name.Decorator, look.number)
    put(Name.Builtin, look.keyword)
    put(Name.Tag, look.function)
    put(Name.Attribute, look.number)
    put(Generic.Inserted, look.good)
    put(Generic.Deleted, look.bad)
    put(Generic.Heading, look.bold)
    return ANSISyntaxTheme(styles)


def _color(value: str | None) -> Color | None:
    """A Rich colour of a theme variable; "auto" and percentages are Textual's own and fall back to the terminal's."""
    if value is None or not value.startswith("#"):
        return None
    return Color.parse(value[:7])
