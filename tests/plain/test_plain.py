"""`kcode --plain` on a real terminal: what is typed, what is written, and nothing that moves the cursor."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from kcode_bench.terminal import Terminal

EDIT = {"name": "str_replace", "arguments": {"path": "a.txt", "old": "hi", "new": "ho"}}
COMMAND = {"name": "bash", "arguments": {"command": "rm a.txt"}}
# Ctrl+C is a signal to the processes of the terminal that a session has for its own.
CONTROLLED = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
PROMPTED_S = 0.3
"""readline writes its prompt a moment before it can be told of a signal."""
Talk = Callable[..., AbstractContextManager[Terminal]]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "a.txt").write_text("hi\n")
    return folder


@pytest.fixture
def talk(tmp_path: Path, work: Path) -> Talk:
    """Starts the program; its model replies as told."""

    @contextmanager
    def begin(*replies: dict[str, object], options: tuple[str, ...] = ("--plain",), term: str = "xterm") -> Generator[Terminal]:
        script = tmp_path / "script.json"
        script.write_text(json.dumps({"replies": replies}))
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KCODE_HOME": str(tmp_path / "kcode"), "TERM": term}
        argv = [sys.executable, "-c", CONTROLLED, sys.executable, "-m", "kcode", "-m", f"scripted:{script}", *options]
        with Terminal(argv, work, environment, 100, 24) as terminal:
            terminal.wait("/help tells what can be typed")
            terminal.wait("> ")
            yield terminal

    return begin


def test_a_turn_with_questions_is_read_from_top_to_bottom(talk: Talk, work: Path) -> None:
    with talk({"text": "I look.", "calls": [EDIT, COMMAND]}, {"text": "All done."}) as terminal:
        terminal.type("please\r")
        terminal.wait("I look.\r\ncall: edit a.txt")
        terminal.wait("Allow edit a.txt? it changes files\r\n  1 - hi\r\n  1 + ho\r\n1 Allow once")
        terminal.wait("1 to 3: ")
        terminal.type("yes\r")
        terminal.wait("1 to 3: ")
        assert (work / "a.txt").read_text() == "hi\n"
        terminal.type("1\r")
        terminal.wait("edit a.txt: done, 1 line added and 1 removed")
        terminal.wait("1 to 3: ")
        terminal.type("3\r")
        terminal.wait("What should it do instead? ")
        terminal.type("keep it\r")
        terminal.wait("$ rm a.txt: failed, 1 line\r\n  Not run: the user denied $ rm a.txt. The user said: keep it\r\n")
        terminal.wait("\r\nAll done.\r\ndone, 2 steps")
        assert (work / "a.txt").read_text() == "ho\n"
        terminal.wait("> ")
        terminal.type("\x04")
        assert terminal.ended() == 0


def test_a_file_that_is_written_anew_is_shown_beside_the_old_one(talk: Talk, work: Path) -> None:
    (work / "a.txt").write_text("one\ntwo\n")
    read = {"name": "read", "arguments": {"path": "a.txt"}}
    anew = {"name": "create", "arguments": {"path": "a.txt", "content": "one\nthree\n"}}
    with talk({"calls": [read]}, {"calls": [anew]}, {"text": "Done."}) as terminal:
        terminal.type("please\r")
        terminal.wait("  2 - two\r\n  2 + three\r\n1 Allow once")
        terminal.wait("1 to 3: ")
        terminal.type("1\r")
        terminal.wait("Done.\r\ndone, 3 steps")
    assert (work / "a.txt").read_text() == "one\nthree\n"


def test_ctrl_c_interrupts_denies_and_leaves(talk: Talk, work: Path) -> None:
    slow = {"text": "one two three", "piece_delay_s": 5}
    with talk(slow, {"calls": [COMMAND]}) as terminal:
        terminal.type("go\r")
        terminal.rest(1.0)
        terminal.type("\x03")
        terminal.wait("interrupted: the user stopped the turn")
        terminal.wait("> ")
        terminal.type("on\r")
        terminal.wait("1 to 3: ")
        terminal.rest(PROMPTED_S)
        terminal.type("\x03")
        terminal.wait("interrupted: the user stopped the turn")
        assert (work / "a.txt").exists()
        terminal.wait("> ")
        terminal.type("half a line")
        terminal.wait("half a line")
        terminal.rest(PROMPTED_S)
        terminal.type("\x03")
        terminal.wait("Ctrl+C again leaves\r\n")
        terminal.wait("> ")
        terminal.rest(PROMPTED_S)
        terminal.type("\x03")
        assert terminal.ended() == 0


def test_a_command_of_ones_own_and_a_resumed_conversation(talk: Talk) -> None:
    with talk({"text": "Seen."}) as terminal:
        terminal.type("!cat a.txt; echo $((40 + 2))\r")
        terminal.wait("hi\r\n42\r\ndone, 2 lines")
        terminal.type("two \\\r")
        terminal.type("lines\r")
        terminal.wait("Seen.\r\ndone, 1 step")
        terminal.wait("> ")
        terminal.type("/mode auto\r")
        terminal.wait("mode auto\r\n")
        terminal.type("/nonsense\r")
        terminal.wait("/nonsense is no command here; /help lists them")
        terminal.type("/quit\r")
        assert terminal.ended() == 0
    with talk(options=("--plain", "-c")) as terminal:
        terminal.type("/rewind\r")
        terminal.wait("1 before two lines\r\n2 before !cat a.txt")
        terminal.type("1\r")
        terminal.wait("took back 'two lines': it changed no files")


def test_nothing_moves_the_cursor_and_a_terminal_that_cannot_draw_is_known(talk: Talk) -> None:
    with talk({"text": "bad \x1b[2J\x1b]2;title\a end"}, options=(), term="dumb") as terminal:
        terminal.type("go\r")
        terminal.wait("done, 1 step")
        terminal.wait("> ")
        seen = terminal.seen
        assert "\x1b" not in seen
        assert "bad" in seen
