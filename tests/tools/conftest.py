"""A started sandbox over an empty workspace, with the real worker inside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.policy import Policy
from kcode_sandbox.sandbox import Sandbox


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = (tmp_path / "project").resolve()
    folder.mkdir()
    return folder


@pytest.fixture
async def sandbox(workspace: Path) -> AsyncIterator[Sandbox]:
    opened = open_sandbox(Policy(workspace))
    await opened.start()
    yield opened
    await opened.close()
