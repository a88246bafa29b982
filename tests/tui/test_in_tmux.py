"""The interface in tmux, as a person uses it: typing, paste, resize, interrupt, and a kill in the middle of an answer."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
PATIENCE_S = 60.0


class Tmux:
    """One program in a terminal of its own server."""

    def __init__(self, folder: Path, command: str, environment: dict[str, str]) -> None:
        self._socket = folder / "tmux"
        self._environment = environment
        self._run("-f", "/dev/null", "new-session", "-d", "-s", "t", "-x", "100", "-y", "30", "-c", str(folder / "work"), command)

    def _run(self, *words: str, given: str | None = None) -> str:
        argv = ["tmux", "-S", str(self._socket), *words]
        return subprocess.run(argv, env=self._environment, input=given, capture_output=True, text=True, check=True).stdout

    def keys(self, *names: str) -> None:
        self._run("send-keys", "-t", "t", *names)

    def write(self, text: str) -> None:
        self._run("send-keys", "-t", "t", "-l", text)

    def paste(self, text: str) -> None:
        self._run("load-buffer", "-", given=text)
        self._run("paste-buffer", "-p", "-t", "t")

    def resize(self, columns: int, rows: int) -> None:
        self._run("resize-window", "-t", "t", "-x", str(columns), "-y", str(rows))

    def tell(self, what: str) -> str:
        return self._run("display-message", "-p", "-t", "t", what).strip()

    @property
    def screen(self) -> str:
        return self._run("capture-pane", "-p", "-t", "t")

    def until(self, *texts: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while not all(text in (shown := self.screen) for text in texts):
            assert time.monotonic() < deadline, f"{texts} did not come:\n{shown}"
            time.sleep(0.1)
        return shown

    def close(self) -> None:
        self._run("kill-server")


@pytest.fixture
def tmux(tmp_path: Path) -> Generator[Tmux]:
    """kcode over a model that answers, answers slowly, and answers; a shell takes its place when it ends."""
    (tmp_path / "work").mkdir()
    replies = [
        {"text": "First answer."},
        {"text": "Slow words that do not come soon", "piece_delay_s": 0.5},
        {"text": "Third answer. " + "word " * 300 + "END"},
    ]
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"replies": replies, "resume": True}))
    program = shlex.join([sys.executable, "-m", "kcode", "-m", f"scripted:{script}", "-y"])
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KCODE_HOME": str(tmp_path / "kcode"), "LC_ALL": "C.UTF-8"}
    terminal = Tmux(tmp_path, f"{program}; exec {program} -c", environment)
    yield terminal
    terminal.close()


def test_a_conversation_in_tmux(tmux: Tmux) -> None:
    tmux.until("kcode in", "❯ What should be done?")
    tmux.write("naïve 日本 typed")
    tmux.until("❯ naïve 日本 typed")
    tmux.keys("Enter")
    tmux.until("First answer.", "✓ done")
    assert tmux.tell("#{pane_title}") == "work · kcode"
    tmux.paste("".join(f"line {number}\n" for number in range(40)))
    tmux.until("[pasted 41 lines #1]")
    tmux.keys("Enter")
    tmux.until("line 39", "Slow ")
    assert tmux.tell("#{pane_title}") == "● work · kcode"
    tmux.keys("Escape")
    tmux.until("interrupted")
    tmux.write("!echo $((40 + 2))")
    tmux.keys("Enter")
    tmux.until("│ 42")
    tmux.write("third")
    tmux.keys("Enter")
    tmux.until("END")
    for columns, rows in ((60, 20), (140, 50), (40, 12), (80, 24)):
        tmux.resize(columns, rows)
        shown = tmux.until("END", "What should be done?")
        assert max(map(len, shown.splitlines())) <= columns


def test_what_was_said_is_there_after_a_kill(tmux: Tmux) -> None:
    tmux.until("kcode in", "❯ What should be done?")
    tmux.write("before the kill")
    tmux.keys("Enter")
    tmux.until("First answer.", "✓ done")
    tmux.write("cut short")
    tmux.keys("Enter")
    tmux.until("Slow ")
    shell = int(tmux.tell("#{pane_pid}"))
    (program,) = (int(pid) for pid in Path(f"/proc/{shell}/task/{shell}/children").read_text().split())
    os.kill(program, signal.SIGKILL)
    tmux.until("before the kill", "First answer.", "cut short", "kcode in", "❯ What should be done?")
    tmux.write("go on")
    tmux.keys("Enter")
    tmux.until("❯ go on", "✓ done")
