"""How quick the terminal interface is, as the user's terminal sees it, with a conversation of 300 calls.

    python -m kcode_bench.tui_bench [--busy]

A real kcode runs on a pseudo-terminal; its model is a server that says a word when it is told to. A time ends when the terminal
has received what was waited for. `bare_first_paint_ms` is a Textual program that shows one line, taken in turns with ours: what
of the first paint is the machine's and Textual's. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from kcode.events import DiffDisplay, PlainDisplay
from kcode.messages import Message, Part, Text, ToolCall, ToolResult, system, user
from kcode.model import Usage
from kcode.paths import find_paths
from kcode.transcript import VERSION, Answered, Header, Opened, Record, Said, Turn, TurnEnd, encode
from kcode_bench.dictated import MODEL, Dictation, dictated_model
from kcode_bench.terminal import Terminal, processor_s, resident_mb

CALLS = 300
COLUMNS, ROWS = 120, 40
STARTS = 3
KEYS = "абвгдежзийклмнопрстуфхцчшщ"
WORDS = 30
PAUSE_S = 0.1
IDLE_S = 5.0
PAINTED = "hat should be done?"
LAST_WORDS = "the-end-of-what-was-said"
BARE = """
from textual.app import App
from textual.widgets import Static
class Bare(App):
    def compose(self):
        yield Static("What should be done?")
Bare().run()
"""
BUSY = "while True: pass"
ANSWER = (
    "The test fails because **digits** are dropped:\n\n```python\nwords = re.findall(r'[a-z]+', title)\n```\n\n- one\n- two\n"
)
OLD = "".join(f"line {number} of the file\n" for number in range(60))
NEW = OLD.replace("line 30 of", "line thirty of")


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians, but for the last two. `open_300_calls_ms` counts from the start of the process, `keystroke_working_ms` is typing
    while an answer comes; `rss_mb` is the interface's own process, `idle_cpu_percent` that of its descendants too."""

    first_paint_ms: float
    bare_first_paint_ms: float
    open_300_calls_ms: float
    keystroke_ms: float
    keystroke_working_ms: float
    append_ms: float
    idle_cpu_percent: float
    rss_mb: float


BUDGETS = {
    "first_paint_ms": 600,
    "open_300_calls_ms": 1000,
    "keystroke_ms": 50,
    "keystroke_working_ms": 50,
    "append_ms": 50,
    "idle_cpu_percent": 1,
    "rss_mb": 250,
}


def conversation(folder: Path, calls: int) -> list[Record]:
    """A session of one turn; a third of the calls are edits, every fourth comes with an answer."""
    records: list[Record] = [
        Header(VERSION, "20260101-000000-beef", str(folder), "2026-01-01T00:00:00Z", "bench"),
        Opened("2026-01-01T00:00:00Z", MODEL, "generic", ""),
        Said(system("You fix bugs."), None),
        Turn(1, "fix the failing tests", "2026-01-01T00:00:00Z"),
        Said(user("fix the failing tests"), None),
    ]
    for number in range(calls):
        call = ToolCall(f"c{number}", "read" if number % 3 else "str_replace", '{"path": "src/a.py"}')
        display = PlainDisplay(OLD) if number % 3 else DiffDisplay("src/a.py", OLD, NEW)
        parts: tuple[Part, ...] = (Text(ANSWER), call) if number % 4 == 0 else (call,)
        records.append(Said(Message("assistant", parts), Usage()))
        records.append(Answered(ToolResult(call.id, call.name, OLD), display, 0.1))
    records.append(Said(Message("assistant", (Text(f"All green: {LAST_WORDS}."),)), Usage()))
    return [*records, TurnEnd(1, "finished", "", "", Usage(8200, 7900, 240))]


class Bench:
    """Starts kcode in `scratch` with a home and a workspace of its own."""

    def __init__(self, scratch: Path, url: str) -> None:
        self._workspace = scratch.resolve() / "work"
        self._workspace.mkdir()
        (self._workspace / "a.py").write_text(OLD)
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("KCODE_", "COLUMNS", "LINES", "NO_COLOR"))
        } | {"KCODE_HOME": str(scratch / "home"), "TERM": "xterm-256color"}
        self._kcode = [sys.executable, "-m", "kcode", "--base-url", url, "-m", MODEL]
        sessions = find_paths(self._environment).sessions(self._workspace)
        sessions.mkdir(parents=True)
        records = conversation(self._workspace, CALLS)
        (sessions / "20260101-000000-beef.jsonl").write_bytes(b"".join(map(encode, records)))

    def new(self) -> Terminal:
        return self._start(self._kcode)

    def resumed(self) -> Terminal:
        return self._start([*self._kcode, "-c"])

    def bare(self) -> Terminal:
        return self._start([sys.executable, "-c", BARE])

    def _start(self, argv: list[str]) -> Terminal:
        return Terminal(argv, self._workspace, self._environment, COLUMNS, ROWS)


def measure(scratch: Path) -> Figures:
    with dictated_model() as model:
        bench = Bench(scratch, model.url)
        painted: list[float] = []
        bare: list[float] = []
        opened: list[float] = []
        for _ in range(STARTS):
            with bench.bare() as terminal:
                bare.append(terminal.wait(PAINTED) - terminal.started)
            with bench.new() as terminal:
                painted.append(terminal.wait(PAINTED) - terminal.started)
            with bench.resumed() as terminal:
                opened.append(terminal.wait(LAST_WORDS) - terminal.started)
        with bench.resumed() as terminal:
            terminal.wait(LAST_WORDS)
            terminal.rest(4)
            keys = _typed(terminal, KEYS)
            terminal.type("\r")
            appended, while_working = _appended(terminal, model)
            terminal.rest(3)
            idle = _idle_share(terminal)
            resident = resident_mb(terminal.pid)
    return Figures(
        first_paint_ms=_ms(painted),
        bare_first_paint_ms=_ms(bare),
        open_300_calls_ms=_ms(opened),
        keystroke_ms=_ms(keys),
        keystroke_working_ms=_ms(while_working),
        append_ms=_ms(appended),
        idle_cpu_percent=round(100 * idle, 2),
        rss_mb=round(resident, 1),
    )


def _typed(terminal: Terminal, letters: str) -> list[float]:
    """How long each letter took to the screen; none of them may be there before."""
    taken: list[float] = []
    for letter in letters:
        terminal.rest(PAUSE_S)
        begun = time.perf_counter()
        terminal.type(letter)
        taken.append(terminal.wait(letter) - begun)
    return taken


def _appended(terminal: Terminal, model: Dictation) -> tuple[list[float], list[float]]:
    """How long each word of an answer took to the screen, and letters that are typed between the words."""
    words: list[float] = []
    letters: list[float] = []
    model.say("It begins-here.")
    terminal.wait("begins-here")
    for number in range(WORDS):
        terminal.rest(PAUSE_S)
        terminal.forget()
        begun = time.perf_counter()
        model.say(f" word{number:03}{'.' * (number % 7 == 6)}")
        words.append(terminal.wait(f"word{number:03}") - begun)
        letters += _typed(terminal, KEYS[number].upper()) if number < len(KEYS) else []
    model.end_answer()
    return words, letters


def _idle_share(terminal: Terminal) -> float:
    """Processor time per second of doing nothing."""
    before, begun = processor_s(terminal.pid), time.perf_counter()
    terminal.rest(IDLE_S)
    return (processor_s(terminal.pid) - before) / (time.perf_counter() - begun)


def _ms(seconds: list[float]) -> float:
    return round(1000 * median(seconds), 1)


@contextmanager
def _busy_core() -> Generator[None]:
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", action="store_true", help="with another process that uses one core")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kcode-tui-") as scratch:
        if given.busy:
            with _busy_core():
                figures = measure(Path(scratch))
        else:
            figures = measure(Path(scratch))
    found = asdict(figures)
    for name, budget in BUDGETS.items():
        print(f"{name:22} {found[name]:8} {'ok' if found[name] < budget else 'OVER':4} (budget {budget})")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
