"""Where a message is made: the prompt, and above it what fits what is typed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Static, TextArea

from kcode.tui.commands import Command
from kcode.tui.completing import Suggestion, commands_for, files_for, messages_for, word_after_at
from kcode.tui.file_index import FileIndex
from kcode.tui.history import History
from kcode.tui.widgets.completions import Completions
from kcode.tui.widgets.prompt import Prompt
from kcode_sandbox.errors import SandboxError

FRESH_S = 10.0
"""How long a list of files is taken for the present one."""
ListFiles = Callable[[], Awaitable[Sequence[str]]]


class Composer(Vertical):
    """`custom` gives the commands that are not kcode's own, `list_files` the paths of the workspace, the last changed first."""

    DEFAULT_CSS = """
    Composer { height: auto; }
    #prompt-row { height: auto; background: $surface; padding: 0 1; }
    #prompt-sign { width: 2; height: 1; color: $primary; text-style: bold; background: $surface; }
    """

    def __init__(
        self, history: History, custom: Callable[[], list[Command]], list_files: ListFiles, *, id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self.prompt = Prompt(history, placeholder="What should be done?", id="prompt")
        self._sign = Static("❯", id="prompt-sign")
        self._completions = Completions(id="completions")
        self._history = history
        self._custom = custom
        self._list_files = list_files
        self._files = FileIndex(())
        self._listed_at = float("-inf")
        self._searches = False

    def compose(self) -> ComposeResult:
        yield self._completions
        with Horizontal(id="prompt-row"):
            yield self._sign
            yield self.prompt

    def close_list(self) -> None:
        """Leave what is offered; a command that was begun is dropped with it."""
        chosen = self._completions.chosen
        self._searches = False
        self._offer([])
        if chosen is not None and chosen.kind in {"own", "command"}:
            self.prompt.put("")

    def on_prompt_complete(self, message: Prompt.Complete) -> None:
        message.stop()
        if message.key in {"up", "down"}:
            self._completions.move(1 if message.key == "down" else -1)
            return
        chosen = self._completions.chosen
        if chosen is None:
            return
        self._searches = False
        if chosen.kind == "own" and message.key == "enter":
            self.prompt.put("")
            self.post_message(Prompt.Sent(chosen.text))
        elif chosen.kind == "file":
            self.prompt.replace_before(chosen.replaces, chosen.text)
        else:
            self.prompt.put(chosen.text)

    def on_prompt_sent(self) -> None:
        self._searches = False
        self._suggest()

    def on_prompt_searched(self, message: Prompt.Searched) -> None:
        message.stop()
        self._searches = not self._searches
        self._suggest()

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        event.stop()
        self._sign.update("$" if self.prompt.text.startswith("!") else "❯")
        self._suggest()

    def _suggest(self) -> None:
        before = self.prompt.before_cursor
        if self._searches:
            self._offer(messages_for(self.prompt.text, self._history))
        elif word_after_at(before) is None:
            self._offer(commands_for(self.prompt.text, self._custom()))
        else:
            if time.monotonic() - self._listed_at > FRESH_S:
                self._listed_at = time.monotonic()
                self.run_worker(self._look_for_files())
            self._offer(files_for(before, self._files))

    async def _look_for_files(self) -> None:
        try:
            paths = await self._list_files()
        except SandboxError:
            self._listed_at = float("-inf")  # what is wrong the next turn will say
            return
        self._files = await asyncio.to_thread(FileIndex, paths)
        if not self._searches and word_after_at(self.prompt.before_cursor) is not None:
            self._offer(files_for(self.prompt.before_cursor, self._files))

    def _offer(self, suggestions: list[Suggestion]) -> None:
        self._completions.offer(suggestions)
        self.prompt.completing = bool(suggestions)
