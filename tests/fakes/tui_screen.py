"""What a person would read on the screen of a running app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from textual.pilot import Pilot

from kcode.tui.app import KcodeApp
from kcode.tui.widgets.prompt import Prompt


def screen_text(app: KcodeApp) -> str:
    width, height = app.size
    lines = app.screen._compositor.render_strips(app.size)
    return "\n".join(strip.text[:width].rstrip() for strip in lines[:height])


async def until(app: KcodeApp, condition: str | Callable[[], bool], timeout_s: float = 30.0) -> str:
    """Wait until a text is on the screen or a condition holds; fails showing the screen."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        holds = condition in screen_text(app) if isinstance(condition, str) else condition()
        if holds:
            return screen_text(app)
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"waited {timeout_s} s for {condition!r}; the screen:\n{screen_text(app)}")
        await asyncio.sleep(0.02)


async def enter(pilot: Pilot[None], text: str) -> None:
    """Put `text` into the prompt, as soon as it can be typed into, and send it."""
    app = pilot.app
    assert isinstance(app, KcodeApp)
    await until(app, lambda: any(prompt.has_focus for prompt in app.screen.query(Prompt)))
    app.screen.query_one(Prompt).insert(text)
    await pilot.press("enter")
