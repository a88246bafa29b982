"""`/copy`: the last answer to the clipboard of the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import App

from kcode.tui.blocks import Answer, Block
from kcode.tui.figures import quantity


def copy_answer(app: App[None], blocks: Sequence[Block]) -> str:
    """As the model wrote it, by the terminal's clipboard sequence (OSC 52), over ssh too; one line that says what was done."""
    answer = next((block for block in reversed(blocks) if isinstance(block, Answer)), None)
    if answer is None:
        return "there is no answer to copy"
    app.copy_to_clipboard(answer.text)
    return f"copied the last answer, {quantity(len(answer.text), 'character')}; the terminal must allow it (OSC 52)"
