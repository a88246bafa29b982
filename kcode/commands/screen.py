"""`kcode` on a terminal: gives the screen what it needs.

What opens a session is imported when the first one is opened: that takes as long as everything up to the first picture.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from kcode.errors import KcodeError
from kcode.paths import Paths
from kcode.settings import SCRIPTED, Settings
from kcode.tui.port import ChatSession, Launch, ModelOffer, PastSession, PullProgress

if TYPE_CHECKING:
    from kcode.opening import Sessions
    from kcode.transcript import Record
    from kcode.tui.port import Ask
    from kcode_backend.pull import PullProgress as BackendProgress

DOING = {"download": "downloading", "verify": "checking"}


class Store:
    """The models of this machine, as the screen asks for them. The calls block.

    What knows the models is imported when they are asked for.
    """

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir

    def offers(self) -> Sequence[ModelOffer]:
        from kcode.commands.models import default_model, source_text
        from kcode_backend.catalog import list_models

        default = default_model(self._models_dir)
        return [
            ModelOffer(
                name=listing.name,
                summary=listing.entry.title if listing.entry is not None else listing.name,
                size_bytes=listing.bytes,
                source=source_text(listing),
                installed=listing.path is not None,
                is_default=listing.name == default,
            )
            for listing in list_models(self._models_dir)
        ]

    def pull(self, name: str, on_progress: Callable[[PullProgress], None]) -> None:
        """Raises KcodeError; an exception out of `on_progress` stops the pull and travels."""
        from kcode.commands.models import pull_model

        def report(progress: BackendProgress) -> None:
            on_progress(PullProgress(progress.done_bytes, progress.total_bytes, DOING[progress.stage]))

        pull_model(name, self._models_dir, "auto", report)


class LateSessions:
    """kcode.opening.Sessions for a screen, imported in a thread while the screen already answers."""

    def __init__(self, settings: Settings, workspace: Path, paths: Paths) -> None:
        self._settings = settings
        self._workspace = workspace
        self._paths = paths

    async def open(self, resume_id: str | None, model: str | None, ask: Ask) -> ChatSession:
        return await (await self._sessions()).open(resume_id, model, ask)

    async def recall(self, resume_id: str) -> Sequence[Record]:
        return await asyncio.to_thread(self._read, resume_id)

    def trust(self) -> str:
        from kcode.trust import trust_here

        return trust_here(self._paths, self._workspace)

    async def past(self) -> Sequence[PastSession]:
        return await (await self._sessions()).past()

    def _read(self, resume_id: str) -> Sequence[Record]:
        from kcode.transcript import active_records, find_session, read_records

        try:
            return active_records(read_records(find_session(self._paths.sessions(self._workspace), resume_id)))
        except (KcodeError, OSError):
            return ()  # opening it says what is wrong

    async def _sessions(self) -> Sessions:
        await asyncio.to_thread(import_module, "kcode.opening")
        from kcode.opening import Sessions

        return Sessions(self._settings, self._workspace, self._paths, "ask")


def show(
    settings: Settings, workspace: Path, paths: Paths, resume_id: str | None, first_message: str, *, plain: bool = False
) -> int:
    """Open the screen until the user leaves, or with `plain` a prompt without one; the exit code."""
    elsewhere = bool(settings.base_url) or settings.model.startswith(SCRIPTED)
    launch = Launch(
        workspace=str(workspace),
        approval_mode=settings.approval_mode or "ask",
        resume_id=resume_id,
        first_message=first_message,
        notifications=settings.notifications,
        needs_model=not elsewhere and not settings.model and resume_id is None and not _has_model(paths.models),
    )
    if plain:
        from kcode.plain.chat import run as run_plain

        return run_plain(launch, LateSessions(settings, workspace, paths), paths.state)
    from kcode.tui.app import run

    store = None if elsewhere else Store(paths.models)
    return run(launch, LateSessions(settings, workspace, paths), store, paths.state, theme=settings.theme)


def _has_model(folder: Path) -> bool:
    from kcode.commands.models import installed_models

    return bool(installed_models(folder))
