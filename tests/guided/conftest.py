"""Projects in temporary folders, sandboxes over them, and source files as the driver loads them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kcode.guided.suspects import Suspect
from kcode.opening import open_policy
from kcode.repomap import WORD, SourceFile
from kcode.settings import Settings
from kcode.tools.symbols import symbols
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
async def sandbox(workspace: Path) -> AsyncIterator[Sandbox]:
    opened = await open_policy(Settings(sandbox="workspace-write"), workspace)
    yield opened
    await opened.close()


def source(path: str, text: str) -> SourceFile:
    return SourceFile(path, text, symbols(path, text), Counter(WORD.findall(text)))


def suspect(path: str, text: str, qualified: str) -> Suspect:
    file = source(path, text)
    (symbol,) = [symbol for symbol in file.symbols if symbol.qualified == qualified]
    return Suspect(file, symbol, 1.0)
