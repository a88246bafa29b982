"""One bash on one pty, fed through a pipe.

bash runs interactively (so ^C returns to it and jobs have their own groups) but takes its commands from a pipe, not
from the terminal: keys sent to a program can never be taken for a command. After each command bash reads a second
line from that pipe, which prints a mark nobody could have guessed, the exit code and the folder. The terminal does
not echo and does not turn "\\n" into "\\r\\n".
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import struct
import termios
from collections.abc import Callable, Mapping

from kcode_sandbox.worker.commands import Supervised
from kcode_sandbox.worker.events import Events, Reader, Writer
from kcode_sandbox.worker.processes import Stdio, send_signal, spawn

ARGV = ("bash", "--noprofile", "--norc", "--noediting", "-i")
# High enough that no script uses it; closed for the commands themselves.
STATE_FD = 250
MAX_STATE_BYTES = 4 << 20
LAST_OUTPUT_S = 0.02
ROWS, COLUMNS = 50, 160
SETUP = (
    "PS1= PS2= PROMPT_COMMAND=; set +o history +o histexpand; unset HISTFILE MAILCHECK; "
    '__kcode_status() { return "$1"; }; KCODE_STATUS=0\n'
)
SAVE_STATE = f"{{ declare -px; declare -f; alias -p; umask -p; shopt -p; printf '\\0'; }} >&{STATE_FD}"
# `$?` survives for the next command; not under `set -e`, where a status other than 0 would end the shell here.
KEEP_STATUS = "[[ $- == *e* ]] || __kcode_status $KCODE_STATUS"


class Terminal:
    """Runs one command at a time. `on_output` gets what it prints, `on_finished` the exit code and folder.

    `on_ended` is called once when bash itself is gone, with its exit code (None: killed).
    """

    def __init__(
        self,
        events: Events,
        environment: Mapping[str, str],
        cwd: str,
        on_output: Callable[[bytes], None],
        on_finished: Callable[[int, str], None],
        on_ended: Callable[[int | None], None],
    ) -> None:
        self._events = events
        self._on_output = on_output
        self._on_finished = on_finished
        self._on_ended = on_ended
        self._mark = b""
        self._held = b""
        self._state = bytearray()
        self.saved_state = b""
        self.ended = False
        master, slave = os.openpty()
        self._terminal_path = os.ttyname(slave)
        _make_raw_enough(slave)
        _resize(master, ROWS, COLUMNS)
        commands, feed = os.pipe()
        state, saved = os.pipe()
        settings = {**environment, "PS1": "", "PS2": ""}
        settings.setdefault("TERM", "xterm-256color")
        try:
            child = spawn(ARGV, cwd, settings, Stdio(commands, terminal=slave, extra=((saved, STATE_FD),)))
        finally:
            for fd in (slave, commands, saved):
                os.close(fd)
        self._screen = Reader(events, master, self._on_data, lambda: None)
        self._state_reader = Reader(events, state, self._on_state, lambda: None)
        self._feed = Writer(events, feed)
        self._tree = Supervised(events, child, self._on_exit)
        self._feed.write(SETUP.encode())

    def restore(self, state: bytes) -> None:
        """Give a fresh bash the exported variables, functions, aliases and options another one had."""
        if state:
            self._feed.write(b"eval " + _quoted(state) + b" 2>/dev/null\n")

    def run(self, command: bytes) -> None:
        _make_raw_enough(self._screen.fd)
        # Keys that a finished program did not read must not reach the next one.
        _flush_input(self._terminal_path)
        self._mark = b"\x1e" + os.urandom(16).hex().encode()
        text = self._mark[1:].decode()
        line = f"{{ {KEEP_STATUS}; eval ".encode() + _quoted(command) + f"; }} <>{self._terminal_path} {STATE_FD}>&-\n".encode()
        report = f"printf '\\036%s %d %s\\036%s\\036' {text} $KCODE_STATUS \"$PWD\" {text} >/dev/tty"
        # The empty line: after an unclosed quote inside eval, bash does not expect a command at the next line's start.
        after = f"\n{{ KCODE_STATUS=$?; {SAVE_STATE}; {report}; }} 2>/dev/null\n"
        self._feed.write(line + after.encode())

    def type(self, keys: bytes) -> None:
        if self._screen.open:
            os.set_blocking(self._screen.fd, False)
            try:
                os.write(self._screen.fd, keys)
            except BlockingIOError:
                self._on_output(b"[the program does not read its input; the keys were dropped]\n")

    def signal_foreground(self, number: int) -> None:
        """To the group that owns the terminal now: the running program, or bash between commands."""
        if self._screen.open:
            group = os.tcgetpgrp(self._screen.fd)
            if group > 0:
                send_signal(-group, number)

    def interrupt(self) -> None:
        self.signal_foreground(signal.SIGINT)

    def resize(self, rows: int, columns: int) -> None:
        if self._screen.open:
            _resize(self._screen.fd, rows, columns)

    def end(self) -> None:
        self._tree.end()

    @property
    def gone(self) -> bool:
        """Bash and everything it started."""
        return self._tree.ended

    def _on_state(self, data: bytes) -> None:
        self._state += data
        if len(self._state) > MAX_STATE_BYTES:
            self._state.clear()
        *complete, rest = bytes(self._state).split(b"\0")
        if complete:
            self.saved_state = complete[-1]
            self._state = bytearray(rest)

    def _on_data(self, data: bytes) -> None:
        if not self._mark:
            self._on_output(data)
            return
        data = self._held + data
        start = data.find(self._mark)
        if start < 0:
            keep = _overlap(data, self._mark)
            self._held = data[len(data) - keep :]
            if len(data) > keep:
                self._on_output(data[: len(data) - keep])
            return
        end = data.find(self._mark + b"\x1e", start + len(self._mark))
        if end < 0:
            self._held = data
            return
        code, _, cwd = data[start + len(self._mark) + 1 : end].partition(b" ")
        rest = data[end + len(self._mark) + 1 :]
        self._mark = self._held = b""
        if start:
            self._on_output(data[:start])
        self._state_reader.drain()
        self._on_finished(int(code), os.fsdecode(cwd))
        if rest:
            self._on_output(rest)

    def _on_exit(self, exit_code: int | None, failure: str) -> None:
        self._tree.end()
        self._feed.close()
        if failure:
            self._on_output(b"[cannot start bash: " + failure.encode(errors="replace") + b"]\n")
        # The kernel hands the last output over from a work queue: it may come after the news of the exit.
        self._events.after(LAST_OUTPUT_S, lambda: self._close(exit_code))

    def _close(self, exit_code: int | None) -> None:
        self._screen.drain()
        if self._held:
            self._on_output(self._held)
        self.ended = True
        self._screen.close()
        self._state_reader.close()
        self._on_ended(exit_code)


def _overlap(data: bytes, mark: bytes) -> int:
    """How many bytes at the end of `data` could be the beginning of `mark`."""
    start = data.rfind(mark[:1], max(0, len(data) - len(mark) + 1))
    return len(data) - start if start >= 0 and mark.startswith(data[start:]) else 0


def _quoted(text: bytes) -> bytes:
    return os.fsencode(shlex.quote(os.fsdecode(text)))


def _make_raw_enough(fd: int) -> None:
    settings = termios.tcgetattr(fd)
    settings[0] = termios.ICRNL
    settings[1] &= ~termios.OPOST
    settings[2] |= termios.CS8
    settings[3] &= ~(termios.ECHO | termios.ECHOE | termios.ECHOK | termios.ECHONL | termios.TOSTOP)
    settings[3] |= termios.ICANON | termios.ISIG | termios.IEXTEN
    termios.tcsetattr(fd, termios.TCSANOW, settings)


def _flush_input(path: str) -> None:
    """Only the slave side's own input queue holds what was typed."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        termios.tcflush(fd, termios.TCIFLUSH)
    finally:
        os.close(fd)


def _resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
