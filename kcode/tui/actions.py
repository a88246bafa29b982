"""What the slash commands do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from textual.screen import Screen

from kcode.errors import KcodeError
from kcode.tui.agents import choose_agent
from kcode.tui.blocks import Listing, Remark
from kcode.tui.breakdown import breakdown_blocks
from kcode.tui.commands import COMMANDS, KEYS, Command
from kcode.tui.conversation import Conversation
from kcode.tui.copying import copy_answer
from kcode.tui.diff import draw_patch
from kcode.tui.port import ModelStore, Sessions
from kcode.tui.screens.models import ModelsScreen
from kcode.tui.screens.pager import PagerScreen
from kcode.tui.screens.picker import Choice, PickerScreen
from kcode.tui.skill_list import list_skills
from kcode.tui.violations import draw_violations
from kcode.tui.widgets.transcript import Transcript
from kcode_sandbox.violation import Violation

Reopen = Callable[[str | None, str | None], Awaitable[None]]


class Actions:
    """Runs commands for one screen. `reopen(resume_id, model)` replaces the session; `show_session` shows it from its records."""

    def __init__(
        self,
        screen: Screen[None],
        transcript: Transcript,
        conversation: Conversation,
        sessions: Sessions,
        store: ModelStore | None,
        reopen: Reopen,
        show_session: Callable[[], None],
        stopped: Sequence[Violation],
    ) -> None:
        self._screen = screen
        self._transcript = transcript
        self._conversation = conversation
        self._sessions = sessions
        self._store = store
        self._reopen = reopen
        self._show_session = show_session
        self._stopped = stopped

    async def run(self, command: Command, text: str = "") -> None:
        """`text` is what was typed. Errors of kcode are shown, the conversation stays as it is."""
        deeds: dict[str, Callable[[], Awaitable[None]]] = {
            "help": self._help,
            "model": self.choose_model,
            "new": self._new,
            "resume": self._resume,
            "context": self._context,
            "stats": self._stats,
            "compact": partial(self._compact, text),
            "copy": self._copy,
            "diff": self._diff,
            "undo": self._undo,
            "rewind": self._rewind,
            "redo": self._redo,
            "fork": self._fork,
            "export": partial(self._export, text),
            "trust": self._trust,
            "agents": self._agents,
            "skills": partial(list_skills, self._transcript, self._conversation),
            "violations": self._violations,
            "quit": self._quit,
        }
        try:
            await deeds[command.name]()
        except KcodeError as error:
            self.tell("✗", str(error), "bad")

    def tell(self, sign: str, text: str, tone: str = "dim") -> None:
        self._transcript.add(Remark(sign, text, tone))

    async def choose_model(self) -> None:
        """Pick or fetch a model and go on with it, keeping the conversation."""
        if self._store is None:
            self.tell("i", "the model is chosen by the server (--base-url); start kcode with -m to name another")
            return
        from kcode.tui.replay import has_turns

        name = await self._screen.app.push_screen_wait(ModelsScreen(self._store, first_run=self._conversation.session is None))
        if name is not None and self._may_leave_turn():
            session = self._conversation.session
            had = session is not None and has_turns(session.records)
            await self._reopen(session.id if session is not None and had else None, name)

    async def _help(self) -> None:
        commands = [(f"/{command.name}", command.summary) for command in COMMANDS]
        self._transcript.add(Listing([*commands, ("", ""), *KEYS]))

    async def _new(self) -> None:
        if self._may_leave_turn():
            await self._reopen(None, None)

    async def _resume(self) -> None:
        past = await self._sessions.past()
        if not past:
            self.tell("i", "no earlier conversation in this folder")
            return
        choices = [Choice(session.id, session.title or "(nothing said)", f"{session.when} · {session.id}") for session in past]
        chosen = await self._screen.app.push_screen_wait(PickerScreen("Go on with a conversation", choices))
        if chosen is not None and self._may_leave_turn():
            await self._reopen(chosen, None)

    async def _context(self) -> None:
        session = self._conversation.session
        if session is None:
            self.tell("i", "no conversation is open")
        else:
            self._transcript.add(*breakdown_blocks(await session.context_breakdown()))

    async def _stats(self) -> None:
        from kcode.tui.stats import stats_blocks

        session = self._conversation.session
        if session is None:
            self.tell("i", "no conversation is open")
        else:
            self._transcript.add(*stats_blocks(session.records))

    async def _compact(self, text: str) -> None:
        if self._conversation.session is None:
            self.tell("i", "no conversation is open")
        else:
            self._conversation.send(text.strip() or "/compact")

    async def _copy(self) -> None:
        self.tell("i", copy_answer(self._screen.app, self._transcript.page.blocks))

    async def _diff(self) -> None:
        if self._conversation.session is None:
            self.tell("i", "no conversation is open")
            return
        patch = await self._conversation.session.diff()
        if not patch.strip():
            self.tell("i", "nothing was changed in this conversation")
            return
        await self._screen.app.push_screen_wait(
            PagerScreen("Changed in this conversation", lambda width, look: draw_patch(patch, width, look))
        )

    async def _undo(self) -> None:
        if self._conversation.session is not None and self._may_leave_turn():
            said = await self._conversation.session.undo()
            self._show_session()
            self.tell("↶", said, "accent")

    async def _agents(self) -> None:
        if self._conversation.session is None:
            self.tell("i", "no conversation is open")
            return
        said = await choose_agent(self._screen, self._conversation.session.swarm)
        if said:
            self.tell("i", said)

    async def _rewind(self) -> None:
        if self._conversation.session is None or not self._may_leave_turn():
            return
        points = self._conversation.session.history.points()
        choices = [Choice(str(point.mark), point.title if point.kind == "turn" else f"  {point.title}") for point in points]
        chosen = await self._screen.app.push_screen_wait(PickerScreen("Go back to before", choices)) if choices else None
        if chosen is not None and self._may_leave_turn():
            said = await self._conversation.session.history.rewind(int(chosen))
            self._show_session()
            self.tell("↶", f"{said}; /redo brings it back", "accent")

    async def _redo(self) -> None:
        if self._conversation.session is not None and self._may_leave_turn():
            said = await self._conversation.session.history.redo()
            self._show_session()
            self.tell("↷", said, "accent")

    async def _fork(self) -> None:
        if self._conversation.session is not None and self._may_leave_turn():
            before = self._conversation.session.id
            await self._reopen(self._conversation.session.history.fork(), None)
            self.tell("i", f"this is a copy of {before}, which stays as it is", "accent")

    async def _export(self, text: str) -> None:
        words = text.split(maxsplit=1)
        if self._conversation.session is None or len(words) < 2:
            self.tell("i", "say where to: /export PATH, ending in .md, .html or .json")
            return
        self.tell("i", self._conversation.session.history.export(Path(words[1].strip())), "accent")

    async def _violations(self) -> None:
        if not self._stopped:
            self.tell("i", "the sandbox has stopped nothing in this conversation")
            return
        stopped = list(self._stopped)
        title = f"What the sandbox stopped ({len(stopped)})"
        await self._screen.app.push_screen_wait(PagerScreen(title, lambda width, look: draw_violations(stopped, width, look)))

    async def _trust(self) -> None:
        self.tell("i", self._sessions.trust(), "accent")

    async def _quit(self) -> None:
        self._screen.app.exit()

    def _may_leave_turn(self) -> bool:
        if self._conversation.is_working:
            self.tell("!", "kcode is working; interrupt it with Esc first", "warning")
        return not self._conversation.is_working
