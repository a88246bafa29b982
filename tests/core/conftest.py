"""A workspace, a home of its own, and sessions over a scripted model with real tools."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from kcode.approval import Asker
from kcode.events import Event, TurnFinished
from kcode.opening import Sessions
from kcode.paths import Paths, find_paths
from kcode.session import Session
from kcode.settings import Settings

Open = Callable[..., Awaitable[Session]]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = (tmp_path / "workspace").resolve()
    folder.mkdir()
    (folder / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    return folder


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return find_paths({"KCODE_HOME": str(tmp_path / "home")})


@pytest.fixture
def write_script(tmp_path: Path) -> Callable[..., str]:
    """Writes a script of replies; returns the model's name for it."""

    def write(*replies: dict[str, object], **options: object) -> str:
        path = tmp_path / "script.json"
        path.write_text(json.dumps({"replies": replies, **options}))
        return f"scripted:{path}"

    return write


@pytest.fixture
async def open_session(workspace: Path, paths: Paths, write_script: Callable[..., str]) -> AsyncIterator[Open]:
    """Opens sessions that reply as told; they are closed when the test ends."""
    opened: list[Session] = []

    async def open_it(
        *replies: dict[str, object],
        resume_id: str | None = None,
        ask: Asker | None = None,
        settings: Settings | None = None,
        **options: object,
    ) -> Session:
        wanted = settings or Settings(sandbox="danger-full-access", approval_mode="auto")
        sessions = Sessions(wanted, workspace, paths, "auto")
        session = await sessions.open(resume_id, write_script(*replies, **options), ask)
        opened.append(session)
        return session

    yield open_it
    for session in opened:
        await session.close()


async def collect(session: Session, text: str) -> list[Event]:
    """All events of one turn."""
    async with aclosing(session.submit(text)) as events:
        return [event async for event in events]


async def interrupted_at(session: Session, kind: type[Event]) -> list[Event]:
    """All events of a turn that is interrupted at those of a kind."""
    events: list[Event] = []
    async with aclosing(session.submit("go")) as stream:
        async for event in stream:
            events.append(event)
            if isinstance(event, kind):
                session.interrupt()
    return events


def ending(events: list[Event]) -> TurnFinished:
    """The last event, which must be the turn's end."""
    last = events[-1]
    assert isinstance(last, TurnFinished)
    return last


def call(name: str, **arguments: object) -> dict[str, object]:
    """A scripted call."""
    return {"name": name, "arguments": arguments}
