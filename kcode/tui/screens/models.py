"""Choose a model; fetch it when it is not here yet. Also what is shown when kcode starts without any."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from kcode.errors import KcodeError
from kcode.tui.clean import clean, one_line
from kcode.tui.figures import bar_text, clock_text, size_text
from kcode.tui.port import ModelOffer, ModelStore, PullCancelled, PullProgress
from kcode.tui.theme import Look, look_of

LOG = logging.getLogger(__name__)
REPORT_S = 0.1


class ModelsScreen(ModalScreen[str | None]):
    """Ends with the name of an installed model, or None. Escape stops a running pull first."""

    DEFAULT_CSS = """
    ModelsScreen {
        align: center middle;
        &.first-run { background: $background; }
        & > Vertical {
            background: $surface;
            border: round $primary;
            width: 90%;
            max-width: 110;
            height: auto;
            max-height: 90%;
            padding: 1 2;
        }
        & .title { text-style: bold; color: $primary; }
        & #models-why { color: $foreground 70%; margin-bottom: 1; }
        & OptionList, & OptionList:focus { height: auto; max-height: 14; border: none; background: $surface; padding: 0; }
        & #models-state { height: auto; margin-top: 1; }
        & .foot { color: $foreground 50%; margin-top: 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,ctrl+c", "close", show=False)]

    class Progressed(Message):
        def __init__(self, progress: PullProgress) -> None:
            super().__init__()
            self.progress = progress

    class Stopped(Message):
        def __init__(self, reason: str, *, failed: bool) -> None:
            super().__init__()
            self.reason, self.failed = reason, failed

    class Pulled(Message):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    def __init__(self, store: ModelStore, *, first_run: bool = False) -> None:
        super().__init__(classes="first-run" if first_run else "")
        self._store = store
        self._first_run = first_run
        self._offers: Sequence[ModelOffer] = ()
        self._pulling = ""
        self._cancelled = threading.Event()
        self._began = 0.0
        self._reported = 0.0

    def compose(self) -> ComposeResult:
        title = "Welcome to kcode" if self._first_run else "Models"
        why = "It runs an open-weights model on this machine. Fetch one to begin: this is needed once." if self._first_run else ""
        with Vertical():
            yield Static(Text(title), classes="title")
            yield Static(Text(why or "Those marked ✓ are installed."), id="models-why")
            yield OptionList()
            yield Static(id="models-state")
            yield Static(
                Text("↑ ↓ choose · Enter uses or fetches · Esc " + ("leaves" if self._first_run else "closes")), classes="foot"
            )

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()
        self.run_worker(self._list(), exclusive=False)

    async def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        offer = next(offer for offer in self._offers if offer.name == event.option_id)
        if self._pulling:
            return
        if offer.installed:
            self.dismiss(offer.name)
            return
        self._pulling, self._began, self._reported = offer.name, time.monotonic(), 0.0
        self._cancelled.clear()
        self._tell(Text(f"Fetching {one_line(offer.name)} …"))
        self.run_worker(lambda: self._pull(offer), thread=True, exit_on_error=False)

    def action_close(self) -> None:
        if self._pulling:
            self._cancelled.set()
            self._tell(Text("Stopping …"))
        else:
            self.dismiss(None)

    async def _list(self) -> None:
        worker = self.run_worker(self._store.offers, thread=True, exit_on_error=False)
        try:
            self._offers = await worker.wait()
        except Exception as error:
            LOG.exception("the models could not be listed")
            self._tell(Text(clean(str(error.__cause__ or error)), look_of(self.app.theme_variables).bad))
            return
        options = self.query_one(OptionList)
        look = look_of(self.app.theme_variables)
        options.add_options([Option(_row(offer, look), id=offer.name) for offer in self._offers])
        default = next((at for at, offer in enumerate(self._offers) if offer.is_default), 0)
        options.highlighted = default if self._offers else None

    def on_unmount(self) -> None:
        self._cancelled.set()

    def on_models_screen_pulled(self, message: Pulled) -> None:
        self.dismiss(message.name)

    def on_models_screen_progressed(self, message: Progressed) -> None:
        if self._pulling and not self._cancelled.is_set():
            self._show(message.progress)

    def on_models_screen_stopped(self, message: Stopped) -> None:
        self._pulling = ""
        look = look_of(self.app.theme_variables)
        style = look.bad if message.failed else look.warning
        self._tell(Text(("✗ " if message.failed else "◌ ") + clean(message.reason), style))

    def _pull(self, offer: ModelOffer) -> None:
        """In a thread."""
        try:
            self._store.pull(offer.name, self._progress)
        except PullCancelled:
            self.post_message(self.Stopped("Stopped. What was fetched is kept for the next try.", failed=False))
        except (KcodeError, OSError) as error:
            self.post_message(self.Stopped(str(error), failed=True))
        except Exception as error:
            LOG.exception("the pull failed")
            self.post_message(self.Stopped(f"{type(error).__name__}: {error}", failed=True))
        else:
            self.post_message(self.Pulled(offer.name))

    def _progress(self, progress: PullProgress) -> None:
        """In a thread, maybe a thousand times a second."""
        if self._cancelled.is_set():
            raise PullCancelled
        now = time.monotonic()
        if now - self._reported >= REPORT_S:
            self._reported = now
            self.post_message(self.Progressed(progress))

    def _show(self, progress: PullProgress) -> None:
        look = look_of(self.app.theme_variables)
        done, total = progress.done_bytes, progress.total_bytes
        text = Text.assemble((bar_text(done, total, 30), look.accent))
        text.append(f" {size_text(done)}" + (f" of {size_text(total)}" if total else ""), look.text)
        seconds = time.monotonic() - self._began
        if done and seconds > 1:
            rate = done / seconds
            text.append(f" · {size_text(int(rate))}/s", look.dim)
            text.append(f" · {clock_text((total - done) / rate)} left" if total > done else "", look.dim)
        text.append(f" · {one_line(progress.doing)}", look.dim)
        self._tell(text)

    def _tell(self, text: Text) -> None:
        self.query_one("#models-state", Static).update(text)


def _row(offer: ModelOffer, look: Look) -> Text:
    text = Text.assemble(
        ("✓ " if offer.installed else "  ", look.good),
        (one_line(offer.name), look.bold),
        (f"  {size_text(offer.size_bytes)}", look.text),
        ("  default" if offer.is_default else "", look.accent),
    )
    text.append(f"\n  {one_line(offer.summary)}", look.dim)
    text.append(f"\n  from {one_line(offer.source)}", look.dim)
    return text
