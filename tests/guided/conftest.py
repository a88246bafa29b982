"""Projects in temporary folders, sandboxes over them, and source files as the driver loads them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kcode.approval import Approval, Asker
from kcode.checkpoint import Checkpoints
from kcode.context import Context
from kcode.guided.suspects import Suspect
from kcode.messages import system
from kcode.model import ChatModel
from kcode.opening import driver_of, open_policy
from kcode.paths import find_paths
from kcode.profiles import SMALL
from kcode.repomap import WORD, SourceFile
from kcode.session import Equipment, Session
from kcode.settings import Settings
from kcode.tools.symbols import symbols
from kcode.tools.toolbox import build_specs, build_tools
from kcode.transcript import create
from kcode.turn import Limits
from kcode_sandbox.sandbox import Sandbox

Write = Callable[[dict[str, str]], None]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = (tmp_path / "workspace").resolve()
    folder.mkdir()
    return folder


@pytest.fixture
def write(workspace: Path) -> Write:
    """Writes files of the project, line ends as given."""

    def write_all(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = workspace / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())

    return write_all


@pytest.fixture
def bare_python(workspace: Path) -> None:
    """The project's own environment, without pytest: kcode's own runner takes a fraction of pytest's time."""
    program = workspace / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).resolve()}" -S "$@"\n')
    program.chmod(0o755)


@pytest.fixture
async def sandbox(workspace: Path, tmp_path: Path) -> AsyncIterator[Sandbox]:
    opened = await open_policy(Settings(sandbox="workspace-write"), workspace, find_paths({"KCODE_HOME": str(tmp_path / "home")}))
    yield opened
    await opened.close()


def source(path: str, text: str) -> SourceFile:
    return SourceFile(path, text, symbols(path, text), Counter(WORD.findall(text)))


def suspect(path: str, text: str, qualified: str) -> Suspect:
    file = source(path, text)
    (symbol,) = [symbol for symbol in file.symbols if symbol.qualified == qualified]
    return Suspect(file, symbol, 1.0)


Begin = Callable[..., Awaitable[Session]]


async def no_work_to_lose() -> bool:
    return False


@pytest.fixture
async def begin(workspace: Path, tmp_path: Path) -> AsyncIterator[Begin]:
    """Opens a session that the driver of small models drives, with real tools, tests and snapshots."""
    opened: list[Session] = []

    async def begin_it(model: ChatModel, limits: Limits | None = None, seed: int = 0, asker: Asker | None = None) -> Session:
        paths = find_paths({"KCODE_HOME": str(tmp_path / "home")})
        sandbox = await open_policy(Settings(sandbox="workspace-write"), workspace, paths)
        tools = build_tools(sandbox, SMALL.tools, model)
        equipment = Equipment(
            model=model,
            sandbox=sandbox,
            tools=tools,
            specs=build_specs(tools),
            profile=SMALL,
            limits=limits or SMALL.limits,
            sampling=SMALL.sampling,
            driver=driver_of(SMALL, sandbox, seed),
            approval=Approval("ask" if asker else "auto", asker, no_work_to_lose),
            checkpoints=Checkpoints(workspace, tmp_path / "store"),
        )
        transcript = create(find_paths({"KCODE_HOME": str(tmp_path / "home")}).sessions(workspace), workspace, "0.1.0")
        context = Context(transcript, None)
        context.add(system("head"))
        opened.append(Session(equipment, transcript, context))
        return opened[-1]

    yield begin_it
    for session in opened:
        await session.close()


def tree_of(folder: Path) -> dict[str, bytes]:
    """The project's files but for its environment."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if not {".venv", "__pycache__"} & set(path.parts)}
