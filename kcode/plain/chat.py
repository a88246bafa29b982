"""kcode without a full screen, for screen readers and terminals that cannot draw: a prompt, lines below it, typed answers."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from kcode.approval import ApprovalMode, Question, Reply
from kcode.errors import KcodeError
from kcode.plain.keyboard import chosen, message, reply
from kcode.plain.lines import Lines
from kcode.tui.commands import COMMANDS, looks_like_command, own_command
from kcode.tui.history import History
from kcode.tui.port import ChatSession, Launch, Sessions
from kcode.tui.twice import Twice

CAUGHT_UP_S = 0.05
"""In this time what was already sent is on the terminal, above the question that stops everything."""
SOON_S = 0.3
RECALLED = 200
LISTED = 20
MODES: Mapping[str, ApprovalMode] = {"plan": "plan", "ask": "ask", "auto": "auto"}
MODE = "/mode plan|ask|auto: only reading, ask before changes, or whatever the sandbox allows"
HELP = """Enter sends. A backslash at the end of a line goes on with the next. Up and Down walk earlier messages.
! and a command runs it in the sandbox yourself; the model reads of it with your next message.
Ctrl+C interrupts; at the prompt, twice, it leaves. Ctrl+D leaves."""


class PlainChat:
    """One conversation at a time. Its coroutines are run one after another; between them the keyboard is waited for."""

    def __init__(self, launch: Launch, sessions: Sessions, lines: Lines) -> None:
        self._launch = launch
        self._sessions = sessions
        self._lines = lines
        self._session: ChatSession | None = None
        self._starting: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._deeds: dict[str, Callable[[str], Awaitable[None]]] = {
            "help": self._help,
            "new": lambda _: self.open(None),
            "resume": self._resume,
            "context": self._context,
            "diff": self._diff,
            "undo": self._undo,
            "rewind": self._rewind,
            "redo": self._redo,
            "export": self._export,
            "mode": self._mode,
        }

    async def open(self, resume_id: str | None) -> None:
        """Raises KcodeError, and then has no conversation."""
        await self.close()
        self._session = await self._sessions.open(resume_id, None, self._ask)
        self._lines.say(f"kcode in {self._launch.workspace}, {self._session.sandbox_description.replace(' · ', ', ')}")
        self._lines.say(f"model {self._session.model_name}, mode {self._session.approval_mode}; /help tells what can be typed")
        for notice in self._session.notices:
            self._lines.show(notice)
        self._lines.recall(self._session.records)

    async def close(self) -> None:
        """Idempotent."""
        session, starting = self._session, self._starting
        self._session = self._starting = None
        if starting is not None:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        if session is not None:
            await session.close()

    async def obey(self, text: str) -> None:
        """A command or a message. What goes wrong is told, and the conversation stays as it is."""
        name, _, rest = text.removeprefix("/").partition(" ")
        custom = {f"/{command.name}" for command in self._session.commands} if self._session is not None else set[str]()
        try:
            if text.startswith("/") and name.lower() in self._deeds:
                await self._deeds[name.lower()](rest.strip())
            elif looks_like_command(text) and name != "compact" and text not in custom:
                self._lines.say(f"{text} is no command here; /help lists them")
            elif self._session is None:
                self._lines.say("no conversation is open; /new opens one")
            else:
                await self._turn(self._session, text)
        except KcodeError as error:
            self._lines.say(f"error: {error}")

    async def _turn(self, session: ChatSession, text: str) -> None:
        loop, command = asyncio.get_running_loop(), own_command(text)
        self._stop.clear()
        self._lines.shows_output = bool(command)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            if not command and not await self._is_ready(session):
                self._lines.say("interrupted before it began")
                return
            async for event in session.submit(command or text, as_command=bool(command)):
                self._lines.show(event)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            self._lines.shows_output = False

    async def _is_ready(self, session: ChatSession) -> bool:
        """Whether the model was made ready before Ctrl+C; it goes on with that meanwhile."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(session.start())
        stopping = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait([self._starting, stopping], timeout=SOON_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self._lines.say("loading the model")
            await asyncio.wait([self._starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._stop.is_set():
            return False
        await self._starting
        return True

    def _interrupt(self) -> None:
        self._stop.set()
        if self._session is not None:
            self._session.interrupt()

    async def _ask(self, question: Question) -> Reply:
        await asyncio.sleep(CAUGHT_UP_S)
        if self._launch.notifications != "off":
            self._lines.ring()
        try:
            return reply(self._lines, question)
        except KeyboardInterrupt:
            self._interrupt()
            await asyncio.sleep(0)  # here the turn is stopped: this runs within it
            return Reply("deny")

    async def _help(self, _: str) -> None:
        names = {*self._deeds, "compact", "quit"}
        known = [f"/{command.name}: {command.summary}" for command in COMMANDS if command.name in names]
        self._lines.say("\n".join([HELP, *known, MODE]))

    async def _resume(self, _: str) -> None:
        past = list(await self._sessions.past())[:LISTED]
        number = chosen(self._lines, [f"{one.title or '(nothing said)'}, {one.when}" for one in past]) if past else None
        if number is not None:
            await self.open(past[number].id)

    async def _context(self, _: str) -> None:
        found = await self._opened.context_breakdown()
        total = found.limit or found.tokens
        whole = f"{found.tokens:,}" if found.limit is None else f"{found.tokens:,} of {found.limit:,}"
        rows = [f"{word}: {tokens:,}, {tokens / total:.0%}" for word, tokens in found.rows] if total else []
        self._lines.say("\n".join([f"the context holds {'' if found.is_exact else 'about '}{whole} tokens", *rows]))

    async def _diff(self, _: str) -> None:
        self._lines.say((await self._opened.diff()).rstrip() or "nothing was changed in this conversation")

    async def _undo(self, _: str) -> None:
        self._lines.say(await self._opened.undo())

    async def _redo(self, _: str) -> None:
        self._lines.say(await self._opened.history.redo())

    async def _rewind(self, _: str) -> None:
        points = list(self._opened.history.points())[:LISTED]
        titles = [f"before {'' if point.kind == 'turn' else 'step '}{point.title}" for point in points]
        number = chosen(self._lines, titles) if points else None
        if number is not None:
            self._lines.say(await self._opened.history.rewind(points[number].mark))

    async def _export(self, path: str) -> None:
        if path:
            self._lines.say(self._opened.history.export(Path(path)))
        else:
            self._lines.say("say where to: /export PATH, ending in .md, .html or .json")

    async def _mode(self, wanted: str) -> None:
        mode = MODES.get(wanted)
        if mode is not None:
            self._opened.set_approval_mode(mode)
        self._lines.say(f"mode {self._opened.approval_mode}" if mode is not None or not wanted else MODE)

    @property
    def _opened(self) -> ChatSession:
        if self._session is None:
            raise KcodeError("no conversation is open; /new opens one")
        return self._session


def run(launch: Launch, sessions: Sessions, state_dir: Path | None) -> int:
    """Talk until the user leaves; the exit code. Raises KcodeError when no conversation can be opened."""
    history = History(state_dir / "history.jsonl" if state_dir is not None else None)
    _edit_lines(history)
    lines, quitting = Lines(sys.stdout), Twice()
    with asyncio.Runner() as runner:
        chat = PlainChat(launch, sessions, lines)
        try:
            runner.run(chat.open(launch.resume_id))
            waiting = launch.first_message
            while True:
                text, waiting = waiting, ""
                try:
                    text = text or message()
                except EOFError:
                    lines.say("")
                    return 0
                except KeyboardInterrupt:
                    lines.say("")
                    if quitting.press():
                        return 0
                    lines.say("Ctrl+C again leaves")
                    continue
                if text.split(maxsplit=1)[:1] == ["/quit"]:
                    return 0
                if text:
                    history.add(text)
                    runner.run(chat.obey(text))
        finally:
            runner.run(chat.close())


def _edit_lines(history: History) -> None:
    # Importing it is what gives `input` line editing.
    import readline

    for text in reversed(history.containing("", RECALLED)):
        readline.add_history(text)
