"""Who looks elsewhere is called: a real program on a real terminal, and the sequences that terminals know."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kcode.tui.attention import Attention, Notifications
from kcode_bench.dictated import MODEL, dictated_model
from kcode_bench.terminal import Terminal
from tests.fakes.tui_screen import enter, screen_text, until
from tests.fakes.tui_session import Hold, ScriptedSessions
from tests.tui.conftest import Start
from tests.tui.test_chat import whole_turn

FOCUS_OUT, FOCUS_IN = "\x1b[O", "\x1b[I"


@dataclass
class Written:
    """A terminal that keeps what it is told."""

    is_watched: bool | None
    told: list[str] = field(default_factory=list)

    def tell_terminal(self, sequence: str) -> None:
        self.told.append(sequence)


@pytest.mark.parametrize(
    ("is_watched", "notifications", "environment", "told"),
    [
        (True, "on", {}, []),
        (None, "on", {}, ["\a"]),
        (False, "bell", {}, ["\a"]),
        (False, "off", {}, []),
        (False, "on", {}, ["\x1b]9;kcode · wörk;: asks: $ rm x\a\a"]),
        (False, "on", {"TERM": "foot"}, ["\x1b]777;notify;kcode · wörk,;asks: $ rm x\a\a"]),
        (False, "on", {"VTE_VERSION": "7600"}, ["\x1b]777;notify;kcode · wörk,;asks: $ rm x\a\a"]),
    ],
)
def test_a_question_calls_who_is_away(
    is_watched: bool | None, notifications: Notifications, environment: dict[str, str], told: list[str]
) -> None:
    terminal = Written(is_watched)
    Attention(terminal, "/home/me/wörk;", notifications, environment).asked("$ rm\x1b]2;evil\a x")
    assert terminal.told == told


def test_the_end_of_a_short_turn_rings_only_for_who_is_known_to_be_away() -> None:
    unknown, away = Written(None), Written(False)
    for terminal in (unknown, away):
        Attention(terminal, "/work", "on", {}).ended("finished", 3.0)
    assert (unknown.told, away.told) == ([], ["\x1b]9;kcode · work: finished\a\a"])
    Attention(unknown, "/work", "on", {}).ended("finished", 30.0)
    assert unknown.told == ["\a"]


def test_the_title_tells_the_state_once_and_nothing_else() -> None:
    terminal = Written(None)
    attention = Attention(terminal, "/repos/my\x1b]0;x\aproject", "off", {})
    for state in ("idle", "working", "working", "asking", "idle"):
        attention.show(state)
    titles = ["myproject · kcode", "● myproject · kcode", "? myproject · kcode", "myproject · kcode"]
    assert terminal.told == [f"\x1b]2;{title}\a" for title in titles]


async def test_escape_twice_goes_back_where_nothing_is_typed(start: Start) -> None:
    app = start(ScriptedSessions(whole_turn))
    async with app.run_test(size=(100, 40)) as pilot:
        await enter(pilot, "first words")
        await until(app, "done · 2 steps")
        await pilot.press("x", "escape", "escape")
        assert "goes back" not in screen_text(app)
        await pilot.press("backspace", "escape")
        await until(app, "Esc again goes back")
        await pilot.press("escape")
        await until(app, "Go back to before")
        await pilot.press("enter")
        await until(app, "took back 'first words'")


async def test_escape_that_interrupts_is_no_first_escape(start: Start) -> None:
    app = start(ScriptedSessions(lambda text: [Hold()]))
    async with app.run_test(size=(100, 40)) as pilot:
        await enter(pilot, "first words")
        await until(app, "esc interrupts")
        await pilot.press("escape")
        await until(app, "interrupted")
        await pilot.press("escape")
        await until(app, "Esc again goes back")


def test_a_real_terminal_is_told_and_gets_its_title_back(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KCODE_HOME": str(tmp_path / "kcode"), "TERM": "xterm"}
    with dictated_model() as model:
        argv = [sys.executable, "-m", "kcode", "--base-url", model.url, "-m", MODEL]
        with Terminal(argv, work, environment, 100, 24) as terminal:
            terminal.wait("\x1b[22;2t")
            terminal.wait("\x1b]2;work · kcode\a")
            terminal.wait("◆")
            terminal.type("go")
            terminal.wait("go")
            terminal.type(f"\r{FOCUS_OUT}")
            terminal.wait("\x1b]2;● work · kcode\a")
            model.say("Hello.")
            model.end_answer()
            terminal.wait("\x1b]9;kcode · work: finished\a\a")
            terminal.type(FOCUS_IN)
            terminal.rest(0.3)
            terminal.type("\x04")
            terminal.wait("\x1b]2;\a\x1b[23;2t")
