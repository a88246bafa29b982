"""What a call asks to do, drawn for the person who must allow it."""

from __future__ import annotations

import json

from rich.text import Text
from textual.strip import Strip

from kcode.messages import ToolCall
from kcode.tui.clean import clean
from kcode.tui.diff import diff_lines, draw_diff
from kcode.tui.draw import code, margin, strips
from kcode.tui.side_by_side import draw_side_by_side
from kcode.tui.theme import Look

EDITS = (("old", "new"), ("old_str", "new_str"), ("old_string", "new_string"))
WHOLE_TEXTS = ("content", "text", "file_text", "code")
COMMANDS = ("command", "argv", "args")


def draw_call(call: ToolCall, width: int, look: Look, two_columns: bool = False, before: str = "") -> list[Strip]:
    """A command as highlighted shell, an edit as a diff (if told, in two columns), else the arguments; all unshortened.

    `before` is what a whole new text replaces.
    """
    values = _arguments(call)
    if values is None:
        return strips(Text(clean(call.arguments), look.text), width, look)
    path = str(values.get("path", ""))
    for old, new in EDITS:
        if isinstance(values.get(old), str) and isinstance(values.get(new), str):
            draw = draw_side_by_side if two_columns else draw_diff
            return draw(diff_lines(str(values[old]), str(values[new])), path, width, look) + _rest(
                values, {old, new, "path"}, width, look
            )
    for name in WHOLE_TEXTS:
        if isinstance(values.get(name), str) and path:
            draw = draw_side_by_side if two_columns and before else draw_diff
            return _rest(values, {name, "path"}, width, look) + draw(diff_lines(before, str(values[name])), path, width, look)
    for name in COMMANDS:
        value = values.get(name)
        if isinstance(value, str | list):
            text = value if isinstance(value, str) else " ".join(str(part) for part in value)
            shown = code(clean(text), "bash", look)
            shown.style = ""
            return margin(strips(shown, max(1, width - 2), look), "$ ", "  ", look.accent) + _rest(values, {name}, width, look)
    return _rest(values, set(), width, look)


def has_two_sides(call: ToolCall, before: str) -> bool:
    """Whether the call is drawn as a diff with an old side and a new one."""
    values = _arguments(call) or {}
    if any(isinstance(values.get(old), str) and isinstance(values.get(new), str) for old, new in EDITS):
        return True
    return bool(before) and bool(values.get("path")) and any(isinstance(values.get(name), str) for name in WHOLE_TEXTS)


def _arguments(call: ToolCall) -> dict[str, object] | None:
    """None when they are no JSON object."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return None
    return {str(key): value for key, value in arguments.items()} if isinstance(arguments, dict) else None


def _rest(values: dict[str, object], shown: set[str], width: int, look: Look) -> list[Strip]:
    lines: list[Strip] = []
    for key, value in values.items():
        if key not in shown and value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines += strips(Text.assemble((f"{clean(key)}: ", look.dim), (clean(text), look.text)), width, look)
    return lines
