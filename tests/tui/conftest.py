from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kcode.tui.app import KcodeApp
from kcode.tui.port import Launch, ModelStore
from tests.fakes.tui_session import ScriptedSessions

Start = Callable[..., KcodeApp]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Builds the app over scripted sessions; its history lives in the test's folder."""

    def build(sessions: ScriptedSessions, store: ModelStore | None = None, launch: Launch | None = None) -> KcodeApp:
        return KcodeApp(launch or Launch("/repo"), sessions, store, tmp_path / "state")

    return build
