"""The main screen: the transcript, what is happening, the prompt, the status line.

It joins a Conversation to the widgets: events go to the Presenter, keys to the Conversation, commands to Actions.
"""

from __future__ import annotations

import asyncio
import gc
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen

from kcode.errors import KcodeError, ModelNotFound
from kcode.tui.asking import ask
from kcode.tui.attention import Attention
from kcode.tui.commands import Command, looks_like_command, parsed
from kcode.tui.context_count import ContextCount
from kcode.tui.conversation import Conversation
from kcode.tui.history import History
from kcode.tui.port import Launch, ModelStore, Sessions
from kcode.tui.twice import WINDOW_S, Twice
from kcode.tui.widgets.activity import Activity
from kcode.tui.widgets.composer import Composer
from kcode.tui.widgets.prompt import Prompt
from kcode.tui.widgets.queued import Queued
from kcode.tui.widgets.status import Facts, Status
from kcode.tui.widgets.todos import Todos
from kcode.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from kcode.approval import ApprovalMode
    from kcode.events import Event
    from kcode.tui.actions import Actions
    from kcode.tui.present import Presenter
    from kcode_sandbox.violation import Violation

HINT = "Enter sends · Ctrl+J new line · / commands · Esc interrupts"
REWIND = Command("rewind", "")
AT_ANY_TIME = {"help", "model", "quit"}
"""Commands that are about no conversation."""
MODES: tuple[ApprovalMode, ...] = ("plan", "ask", "auto")


class ChatScreen(Screen[None]):
    DEFAULT_CSS = """
    ChatScreen { background: $background; layout: vertical; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "interrupt", show=False),
        Binding("ctrl+c", "stop_or_quit", show=False, priority=True),
        Binding("shift+tab", "cycle_mode", show=False, priority=True),
        Binding("ctrl+t", "view('todos')", show=False, priority=True),
        Binding("ctrl+o", "view('folds')", show=False, priority=True),
        Binding("pageup", "view('up')", show=False, priority=True),
        Binding("pagedown", "view('down')", show=False, priority=True),
    ]

    def __init__(
        self, launch: Launch, sessions: Sessions, store: ModelStore | None, state_dir: Path | None, attention: Attention
    ) -> None:
        super().__init__()
        self._launch = launch
        self._attention = attention
        self._sessions = sessions
        self._transcript = Transcript(id="transcript")
        self._activity = Activity(id="activity")
        self._queued = Queued(id="queued")
        self._todos = Todos(id="todos")
        self._status = Status(Facts(approval=launch.approval_mode), id="status")
        history = History(state_dir / "history.jsonl" if state_dir is not None else None)
        self._conversation = Conversation(
            sessions,
            lambda question: ask(self, self._presenter, attention, question),
            on_event=self._show,
            on_said=lambda text: self._presenter.say(text),
            on_change=self._changed,
        )
        self._composer = Composer(history, lambda: self._custom, self._conversation.files, id="composer")
        self._prompt = self._composer.prompt
        self._stopped: list[Violation] = []
        self._store = store
        self._count = ContextCount(self._conversation, self._tell_facts)
        self._quitting = Twice()
        self._going_back = Twice()
        self._may_open = False
        self._begun = asyncio.Event()

    def compose(self) -> ComposeResult:
        yield self._transcript
        yield self._todos
        yield self._queued
        yield self._activity
        yield self._composer
        yield self._status

    @cached_property
    def _actions(self) -> Actions:
        from kcode.tui.actions import Actions

        stopped, store = self._stopped, self._store
        return Actions(
            self, self._transcript, self._conversation, self._sessions, store, self._reopen, self._show_session, stopped
        )

    @cached_property
    def _presenter(self) -> Presenter:
        from kcode.tui.present import Presenter

        return Presenter(self._transcript, self._activity)

    def on_mount(self) -> None:
        self._attention.show("idle")
        self._activity.tell(HINT)
        self._prompt.focus()
        self.call_after_refresh(self._begin)

    async def on_unmount(self) -> None:
        self._count.close()
        await self._conversation.close()

    def on_prompt_sent(self, message: Prompt.Sent) -> None:
        command = parsed(message.text)
        if command is not None:
            self.run_worker(self._run_command(command, message.text))
        elif looks_like_command(message.text) and message.text.strip() not in {f"/{one.name}" for one in self._custom}:
            self._actions.tell("!", f"{message.text} is no command; /help lists them", "warning")
        else:
            self._conversation.send(message.text)
            if self._may_open and self._conversation.session is None and not self._conversation.is_opening:
                self.run_worker(self._reopen(None, None))

    async def _run_command(self, command: Command, text: str) -> None:
        """What is about a conversation waits until the first one is open, or cannot be."""
        if command.name not in AT_ANY_TIME:
            await self._begun.wait()
        await self._actions.run(command, text)

    @property
    def _custom(self) -> list[Command]:
        """Those of the user and of the repository, whose text becomes the message."""
        session = self._conversation.session
        return [Command(command.name, command.summary) for command in session.commands] if session is not None else []

    def on_prompt_ended(self) -> None:
        self.app.exit()

    def on_prompt_recalled(self) -> None:
        """Up on an empty prompt while messages wait: take them back to edit."""
        self._prompt.put(self._conversation.take_back())

    def on_transcript_left(self, message: Transcript.Left) -> None:
        self._prompt.focus()
        if message.character:
            self._prompt.insert(message.character)

    def action_interrupt(self) -> None:
        if self._prompt.completing:
            self._composer.close_list()
        elif self._conversation.is_working:
            if self._conversation.queue:
                self._prompt.put("\n".join(filter(None, [self._conversation.take_back(), self._prompt.text])))
            self._conversation.interrupt()
            self._activity.tell("interrupting …")
        elif not self._prompt.text:
            if self._going_back.press():
                self.run_worker(self._run_command(REWIND, ""))
            self._tell_for_a_while()

    def action_stop_or_quit(self) -> None:
        """Copy a selection; else interrupt or clear the prompt; a second time within QUIT_WINDOW_S leave."""
        selected = self.get_selected_text() or self._prompt.selected_text
        if selected:
            self.app.copy_to_clipboard(selected)
            self.clear_selection()
            return
        if self._quitting.press():
            self.app.exit()
            return
        if self._conversation.is_working:
            self.action_interrupt()
        else:
            self._prompt.put("")
        self._tell_for_a_while()

    def action_cycle_mode(self) -> None:
        """plan, ask, auto: how far kcode goes without asking."""
        session = self._conversation.session
        if session is not None:
            session.set_approval_mode(MODES[(MODES.index(session.approval_mode) + 1) % len(MODES)])
            self._tell_facts()

    def action_view(self, what: str) -> None:
        """ "todos" shows or hides them, "folds" unfolds or folds all, "up" and "down" page."""
        if what == "todos":
            self._todos.toggle()
        elif what == "folds":
            self._transcript.fold_all()
        else:
            page = max(1, self._transcript.size.height - 2)
            self._transcript.scroll_relative(y=page if what == "down" else -page, animate=False)

    async def _begin(self) -> None:
        # What the first picture does not need; in a thread, so that typing goes on.
        await asyncio.to_thread(import_module, "kcode.tui.present")
        self.run_worker(lambda: import_module("kcode.tui.prose"), thread=True)
        if self._launch.first_message:
            self._conversation.send(self._launch.first_message)
        self._may_open = self._launch.needs_model
        if self._launch.needs_model:
            self._begun.set()
            _collect_again()
            self.run_worker(self._actions.choose_model())
        else:
            self.run_worker(self._reopen(self._launch.resume_id, None))

    async def _reopen(self, resume_id: str | None, model: str | None) -> None:
        replaces = self._conversation.session is not None
        if resume_id is not None and not replaces:
            self._presenter.recall(await self._sessions.recall(resume_id))
        try:
            await self._conversation.open(resume_id, model)
        except ModelNotFound as error:
            self._presenter.forget()
            self._actions.tell("!", str(error), "warning")
            self.run_worker(self._actions.choose_model())
            return
        except KcodeError as error:
            self._presenter.forget()
            self._actions.tell("✗", f"{error}", "bad")
            return
        finally:
            self._may_open = True
            self._begun.set()
            _collect_again()
            self._activity.tell(self._hint())
        if replaces:
            self._stopped.clear()
            self._show_session()
        else:
            self._present_session()
        self._conversation.proceed()

    def _show_session(self) -> None:
        """Nothing but the session's own records."""
        self._transcript.clear()
        self._present_session()

    def _present_session(self) -> None:
        session = self._conversation.session
        assert session is not None
        self._presenter.greet(self._launch.workspace, session.sandbox_description, session.records)
        for notice in session.notices:
            self._presenter.show(notice)
        self._todos.replay(session.records)
        self._changed()
        if not self._conversation.is_warming:
            # What was taken back no longer counts; a model that is still loading counts when it is ready.
            self._count.soon()

    def _show(self, event: Event) -> None:
        from kcode.events import CallFinished, Notice, Prefill, SandboxViolation, StepFinished, TurnFinished

        self._presenter.show(event)
        self._todos.show(event)
        match event:
            case Prefill(total=total):
                self._tell_facts(used=total)
            case StepFinished(tokens_per_s=rate):
                self._tell_facts(rate=rate)
            case TurnFinished(duration_s=duration_s, status=status):
                self._tell_facts(elapsed_s=duration_s)
                self._attention.ended(status, duration_s)
                # After an error there may be no engine, and counting would start it.
                if status != "error":
                    self._count.soon()
            case CallFinished() | Notice(level="info"):
                self._count.soon()
            case SandboxViolation(violation=violation):
                self._stopped.append(violation)
                self._tell_facts()
            case _:
                pass

    def _changed(self) -> None:
        """The session, the queue or whether a turn runs has changed."""
        self._queued.tell(self._conversation.queue)
        self._prompt.has_waiting = bool(self._conversation.queue)
        if self._conversation.is_working:
            self._activity.start("Loading the model" if self._conversation.is_warming else "Working")
        else:
            self._presenter.stop()
        self._attention.show("working" if self._conversation.is_working else "idle")
        self._activity.tell(self._hint())
        self._tell_facts()

    def _hint(self) -> str:
        """The idle line, or what is added to the working line."""
        if self._quitting.is_armed:
            return "Ctrl+C again leaves"
        if self._conversation.is_working:
            return ""
        if self._going_back.is_armed:
            return "Esc again goes back to before a message or a step"
        if self._conversation.is_opening:
            return "Opening …"
        return "Loading the model … you can type already" if self._conversation.is_warming else HINT

    def _tell_for_a_while(self) -> None:
        """A hint about a key that may be pressed again, taken back when that no longer counts."""
        self._activity.tell(self._hint())
        self.set_timer(WINDOW_S + 0.1, lambda: self._activity.tell(self._hint()))

    def _tell_facts(self, used: int | None = None, rate: float | None = None, elapsed_s: float | None = None) -> None:
        session, before = self._conversation.session, self._status.facts
        self._status.tell(
            Facts(
                model=session.model_name if session else "",
                context_used=used if used is not None else session.context_used if session else 0,
                context_limit=session.context_limit if session else None,
                tokens_per_s=before.tokens_per_s if rate is None else rate,
                elapsed_s=before.elapsed_s if elapsed_s is None else elapsed_s,
                sandbox=session.sandbox_description if session else "",
                approval=session.approval_mode if session else self._launch.approval_mode,
                violations=len(self._stopped),
            )
        )


def _collect_again() -> None:
    """What is there by now stays: the collector need not look through it."""
    gc.freeze()
    gc.enable()
