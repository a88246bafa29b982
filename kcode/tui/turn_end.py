"""The line that closes a turn."""

from __future__ import annotations

from collections.abc import Mapping

from kcode.events import TurnStatus
from kcode.model import Usage
from kcode.tui.blocks import Remark

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


def _tokens(usage: Usage) -> list[str]:
    if usage == Usage():
        return []
    return [
        f"{usage.prompt_tokens:,} tokens read ({usage.cached_tokens:,} cached)",
        f"{usage.completion_tokens:,} written",
    ]
