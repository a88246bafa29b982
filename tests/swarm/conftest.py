"""A session over a small project, with a scripted model and the default sandbox."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kcode.approval import Asker
from kcode.events import Event
from kcode.opening import Sessions
from kcode.paths import Paths, find_paths
from kcode.session import Session
from kcode.settings import Settings
from tests.backend.conftest import write_tiny

Json = dict[str, object]
# The fixture of the engine's own tests.
__all__ = ["Json", "Project", "call", "edit", "events_of", "step", "task", "write_tiny"]


@dataclass(frozen=True, slots=True)
class Project:
    """`workspace` is the folder, `open` a session in it."""

    workspace: Path
    paths: Paths
    script: Path

    def write(self, replies: list[Json], beside: dict[str, list[Json]]) -> Path:
        """The script of a model."""
        self.script.write_text(json.dumps({"replies": replies, "beside": beside}))
        return self.script

    @asynccontextmanager
    async def open(
        self, replies: list[Json], beside: dict[str, list[Json]], settings: Settings | None = None, ask: Asker | None = None
    ) -> AsyncGenerator[Session]:
        self.write(replies, beside)
        sessions = Sessions(settings or Settings(), self.workspace, self.paths, "auto" if ask is None else "ask")
        session = await sessions.open(None, f"scripted:{self.script}", ask)
        try:
            yield session
        finally:
            await session.close()

    def clones(self) -> list[Path]:
        """What clones have left."""
        folder = self.paths.clones(self.workspace)
        return [path for path in folder.iterdir() if not path.name.startswith("trash-")] if folder.exists() else []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    workspace = tmp_path.resolve() / "project"
    workspace.mkdir()
    (workspace / "a.py").write_text("".join(f"a{number} = {number}\n" for number in range(12)))
    (workspace / "b.py").write_text("b = 1\n")
    for name in [name for name in os.environ if name.startswith("KCODE_")]:
        monkeypatch.delenv(name)
    return Project(workspace, find_paths({"KCODE_HOME": str(tmp_path / "home")}), tmp_path / "script.json")


async def events_of(session: Session, text: str, on_event: Callable[[Event], None] | None = None) -> Sequence[Event]:
    """All events of one turn."""
    events: list[Event] = []
    async with aclosing(session.submit(text)) as turn:
        async for event in turn:
            events.append(event)
            if on_event is not None:
                on_event(event)
    return events


def step(*calls: Json, text: str = "") -> Json:
    return {"text": text, "calls": list(calls)}


def call(tool: str, **arguments: object) -> Json:
    return {"name": tool, "arguments": arguments}


def task(prompt: str, *, fork: bool = True) -> Json:
    return call("task", description=f"do {prompt}", prompt=prompt, fork=fork)


def edit(path: str, old: str, new: str) -> list[Json]:
    """Two steps that change a file."""
    return [step(call("read", path=path)), step(call("str_replace", path=path, old=old, new=new))]
