"""The line that closes a turn."""

from __future__ import annotations

from collections.abc import Mapping

from kcode.events import TurnStatus
from kcode.model import Usage
from kcode.tui.blocks import Remark

# The tool by which a model ends a turn: its result is what the turn came to.
FINISH = "finish"
ENDS: Mapping[TurnStatus, tuple[str, str, str]] = {
    "finished": ("✓", "good", "done"),
    "limit": ("!", "warning", "stopped at a limit"),
    "loop": ("!", "warning", "stopped: it went in circles"),
    "interrupted": ("◌", "warning", "interrupted"),
    "error": ("✗", "bad", "failed"),
}


def end_of_turn(status: TurnStatus, reason: str, usage: Usage, more: list[str]) -> Remark:
    """`more` are further facts: the first stands before the tokens, the others after."""
    sign, tone, words = ENDS[status]
    facts = [
        words if status == "finished" or not reason else f"{words}: {reason}",
        *more[:1],
        *_tokens(usage),
        *more[1:],
    ]
    return Remark(sign, " · ".join(facts), tone)


def told_at_end(result: str, reason: str, heard: str) -> str:
    """What a turn came to, as markdown; "" when `heard`, all that was said in it, or the end line tell it already."""
    text = result.strip()
    if not text or text in heard or (reason and reason in text):
        return ""
    # Names like __init__ are no emphasis; inside of backticks nothing is.
    parts = text.split("`")
    return "`".join(part if number % 2 else part.replace("__", "\\_\\_") for number, part in enumerate(parts))


def _tokens(usage: Usage) -> list[str]:
    if usage == Usage():
        return []
    return [
        f"{usage.prompt_tokens:,} tokens read ({usage.cached_tokens:,} cached)",
        f"{usage.completion_tokens:,} written",
    ]
