"""Choosing and fetching a model, above all at the first start."""

from __future__ import annotations

import threading
from dataclasses import replace

from kcode.errors import KcodeError, ModelNotFound
from kcode.events import TextPiece
from kcode.tui.port import Launch
from tests.fakes.tui_screen import enter, screen_text, until
from tests.fakes.tui_session import OFFERS, ScriptedSessions, ScriptedStore
from tests.tui.conftest import Start

FIRST_RUN = Launch("/repo", needs_model=True)


def answering() -> ScriptedSessions:
    return ScriptedSessions(lambda text: [TextPiece("here I am")])


async def test_first_run_offers_the_default_pulls_it_and_begins(start: Start) -> None:
    sessions, store, go = answering(), ScriptedStore(), threading.Event()
    store.gate = lambda step: None if step < 10 else bool(go.wait(10)) and None
    app = start(sessions, store, FIRST_RUN)
    async with app.run_test(size=(100, 30)) as pilot:
        shown = await until(app, "default")
        assert "qwen2.5-coder-1.5b  1.1 GB  default" in shown
        assert "from Hugging Face Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF" in shown
        await pilot.press("enter")
        await until(app, "of 1.1 GB")
        go.set()
        await until(app, lambda: bool(sessions.opened))
        assert store.pulled == ["qwen2.5-coder-1.5b"]
        assert sessions.asked == [(None, "qwen2.5-coder-1.5b")]
        await enter(pilot, "hello")
        await until(app, "here I am")


async def test_escape_stops_a_pull_and_it_can_be_tried_again(start: Start) -> None:
    sessions, store, go = answering(), ScriptedStore(), threading.Event()
    store.gate = lambda step: None if step < 5 else bool(go.wait(10)) and None
    app = start(sessions, store, FIRST_RUN)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(app, "default")
        await pilot.press("enter")
        await until(app, "downloading")
        await pilot.press("escape")
        go.set()
        await until(app, "Stopped. What was fetched is kept")
        assert store.pulled == []
        await pilot.press("enter")
        await until(app, lambda: bool(sessions.opened))


async def test_a_pull_that_fails_says_why(start: Start) -> None:
    store = ScriptedStore(problem=KcodeError("1.1 GB are needed in /models and 0.2 GB are free; free some space"))
    app = start(answering(), store, FIRST_RUN)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(app, "default")
        await pilot.press("enter")
        await until(app, "✗ 1.1 GB are needed in /models")
        assert "default" in screen_text(app)


async def test_left_without_a_model_the_screen_stays_and_says_what_to_do(start: Start) -> None:
    sessions = answering()
    sessions.problem = ModelNotFound("no model is installed; /model offers some")
    app = start(sessions, ScriptedStore(), FIRST_RUN)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(app, "default")
        await pilot.press("escape")
        await until(app, "no model")
        await enter(pilot, "hello")
        await until(app, "Welcome to kcode")


async def test_another_model_goes_on_with_the_conversation(start: Start) -> None:
    sessions = answering()
    store = ScriptedStore(listed=[replace(offer, installed=True) for offer in OFFERS])
    app = start(sessions, store)
    async with app.run_test(size=(100, 30)) as pilot:
        await enter(pilot, "hello")
        await until(app, "✓ done")
        await enter(pilot, "/model")
        await until(app, "✓ qwen3-30b-a3b")
        await pilot.press("down", "enter")
        await until(app, lambda: len(sessions.opened) == 2)
        assert sessions.asked[1] == (sessions.opened[0].id, "qwen3-30b-a3b")
        await until(app, lambda: "qwen3-30b-a3b" in screen_text(app).splitlines()[-1])
