"""The model's questions, put to the person."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from textual.screen import Screen

if TYPE_CHECKING:
    from kcode.approval import Question, Reply
    from kcode.tui.attention import Attention
    from kcode.tui.present import Presenter


async def ask(screen: Screen[None], presenter: Presenter, attention: Attention, question: Question) -> Reply:
    """The person's answer, given in a screen over `screen`. Cancelled with the turn, it takes its question away."""
    from kcode.approval import Reply
    from kcode.tui.screens.approval import ApprovalScreen

    answer: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
    dialog = ApprovalScreen(question)

    def settle(reply: Reply | None) -> None:
        if not answer.done():
            answer.set_result(reply)

    presenter.ask()
    attention.show("asking")
    attention.asked(question.summary)
    await screen.app.push_screen(dialog, settle)
    try:
        return await answer or Reply("deny")
    finally:
        attention.show("working")
        if dialog.is_current:
            dialog.dismiss(None)
