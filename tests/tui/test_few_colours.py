"""Terminals with 16 colours, and those that are to show none: what is told stays readable."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from rich.color import ColorSystem

from kcode.tui.app import KcodeApp
from kcode.tui.port import Launch
from kcode_bench.dictated import MODEL, dictated_model
from kcode_bench.terminal import Terminal
from tests.fakes.tui_screen import until
from tests.fakes.tui_session import ScriptedSessions
from tests.snapshots.test_tui_screens import FINISHED
from tests.tui.test_chat import whole_turn

SGR = re.compile(r"\x1b\[([0-9;]*)m")
RICH_COLOURS = re.compile(r"(?:^|;)[34]8;[25];")
ANY_COLOUR = re.compile(r"(?:^|;)(?:[34][0-8]|9[0-7]|10[0-7])(?:;|$)")


@pytest.mark.parametrize("theme", ["kcode-dark", "kcode-light"])
async def test_no_text_has_the_colour_of_its_ground_among_sixteen(theme: str) -> None:
    app = KcodeApp(Launch("/repo", resume_id="x"), ScriptedSessions(whole_turn, history=FINISHED), theme=theme)
    async with app.run_test(size=(100, 60)) as pilot:
        await until(app, "All tests pass")
        await pilot.press("ctrl+o", *"/co")
        shown = await until(app, "what fills the context")
        assert "slugify" in shown
        pairs = [
            (segment.text, segment.style.color.downgrade(system), segment.style.bgcolor.downgrade(system))
            for strip in app.screen._compositor.render_strips(app.size)
            for segment in strip
            for system in (ColorSystem.STANDARD,)
            if segment.style and segment.style.color and segment.style.bgcolor and re.search(r"\w", segment.text)
        ]
    assert len(pairs) > 50
    assert [pair for pair in pairs if pair[1].number == pair[2].number] == []


@pytest.mark.parametrize(
    ("colours", "allowed"), [({"TERM": "xterm"}, "sixteen"), ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "none")]
)
def test_a_terminal_is_sent_the_colours_it_has(tmp_path: Path, colours: dict[str, str], allowed: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KCODE_HOME": str(tmp_path / "kcode"), **colours}
    with dictated_model() as model:
        argv = [sys.executable, "-m", "kcode", "--base-url", model.url, "-m", MODEL]
        with Terminal(argv, work, environment, 100, 24) as terminal:
            terminal.wait("◆")
            terminal.rest(0.5)
            styles = SGR.findall(terminal.seen)
    assert len(styles) > 5
    assert not [style for style in styles if RICH_COLOURS.search(style)]
    assert any(ANY_COLOUR.search(style) for style in styles) == (allowed == "sixteen")
