"""`kcode acp`, driven by the protocol's own SDK as a client over standard input and output."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TypeVar, cast

import pytest
from acp import PROTOCOL_VERSION, RequestError, helpers, spawn_agent_process
from acp.interfaces import Client
from acp.schema import (
    AgentMessageChunk,
    AllowedOutcome,
    FileEditToolCallContent,
    PermissionOption,
    RequestPermissionResponse,
    TextContentBlock,
    ToolCallProgress,
    ToolCallStart,
    ToolCallUpdate,
    UserMessageChunk,
)

ROOT = Path(__file__).resolve().parents[2]
CREATE = {"name": "create", "arguments": {"path": "a.txt", "content": "one\n"}}
AGAIN = {"name": "create", "arguments": {"path": "b.txt", "content": "two\n"}}
SLEEP = {"name": "bash", "arguments": {"command": "echo begun; sleep 300"}}

UpdateT = TypeVar("UpdateT")


class Editor:
    """Answers every question as told and keeps what it is shown."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.asked: list[tuple[str | None, list[str]]] = []
        self.updates: list[object] = []
        self.begun = asyncio.Event()

    async def request_permission(
        self, session_id: str, tool_call: ToolCallUpdate, options: list[PermissionOption], **meta: object
    ) -> RequestPermissionResponse:
        self.asked.append((tool_call.kind, [option.option_id for option in options]))
        return RequestPermissionResponse(outcome=AllowedOutcome(outcome="selected", option_id=self.answer))

    async def session_update(self, session_id: str, update: object, **meta: object) -> None:
        self.updates.append(update)
        if isinstance(update, ToolCallProgress) and "begun" in str(update.content):
            self.begun.set()

    def of(self, kind: type[UpdateT]) -> list[UpdateT]:
        return [update for update in self.updates if isinstance(update, kind)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return (tmp_path / "workspace").resolve()


def command(folder: Path, *replies: dict[str, object]) -> tuple[list[str], dict[str, str]]:
    script = folder.parent / "script.json"
    script.write_text(json.dumps({"replies": replies}))
    folders = [str(ROOT), *(str(ROOT / name) for name in ("backend", "sandbox", "prompts", "swebench"))]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KCODE_")}
    own = {
        "KCODE_HOME": str(folder.parent / "home"),
        "KCODE_SANDBOX": "danger-full-access",
        "PYTHONPATH": os.pathsep.join(folders),
    }
    return [sys.executable, "-m", "kcode", "acp", "-m", f"scripted:{script}"], {**kept, **own}


async def test_a_turn_with_edits_a_question_for_the_session_and_the_same_session_again(folder: Path) -> None:
    arguments, environment = command(folder, {"text": "I write.", "calls": [CREATE]}, {"calls": [AGAIN]}, {"text": "done"})
    editor = Editor("allow-session")
    async with asyncio.timeout(180), spawn_agent_process(cast("Client", editor), *arguments, env=environment) as (agent, _):
        about = await agent.initialize(PROTOCOL_VERSION)
        assert about.agent_info is not None
        assert about.agent_info.name == "kcode"
        opened = await agent.new_session(str(folder))
        assert opened.modes is not None
        assert opened.modes.current_mode_id == "ask"
        assert [mode.id for mode in opened.modes.available_modes] == ["plan", "ask", "auto"]
        ended = await agent.prompt(opened.session_id, [helpers.text_block("write two files")])
        assert ended.stop_reason == "end_turn"
        assert editor.asked == [("edit", ["allow", "allow-session", "deny"])], "the second call was allowed with the first"
        started, done = editor.of(ToolCallStart), editor.of(ToolCallProgress)
        assert [call.kind for call in started] == ["edit", "edit"]
        first = started[0]
        assert first.locations is not None
        assert first.locations[0].path == str(folder / "a.txt")
        diffs = [part for call in done for part in call.content or []]
        assert [(part.path, part.new_text) for part in diffs if isinstance(part, FileEditToolCallContent)] == [
            (str(folder / "a.txt"), "one\n"),
            (str(folder / "b.txt"), "two\n"),
        ]
        said = "".join(
            chunk.content.text for chunk in editor.of(AgentMessageChunk) if isinstance(chunk.content, TextContentBlock)
        )
        assert "I write." in said
        assert said.endswith("done")
        assert (folder / "b.txt").read_text() == "two\n"
        editor.updates.clear()
        await agent.load_session(str(folder), opened.session_id)
        assert [chunk.content for chunk in editor.of(UserMessageChunk)] == [helpers.text_block("write two files")]
        assert [one.session_id for one in (await agent.list_sessions(cwd=str(folder))).sessions] == [opened.session_id]


async def test_plan_mode_and_a_turn_that_is_cancelled(folder: Path) -> None:
    arguments, environment = command(folder, {"calls": [CREATE]}, {"text": "not now"}, {"calls": [SLEEP]}, {"text": "never"})
    editor = Editor("allow")
    async with asyncio.timeout(180), spawn_agent_process(cast("Client", editor), *arguments, env=environment) as (agent, _):
        await agent.initialize(PROTOCOL_VERSION)
        session = (await agent.new_session(str(folder))).session_id
        await agent.set_session_mode(session_id=session, mode_id="plan")
        assert (await agent.prompt(session, [helpers.text_block("write")])).stop_reason == "end_turn"
        assert not (folder / "a.txt").exists()
        assert editor.asked == []
        with pytest.raises(RequestError, match="no mode 'yolo'"):
            await agent.set_session_mode(session_id=session, mode_id="yolo")
        await agent.set_session_mode(session_id=session, mode_id="auto")
        turn = asyncio.create_task(agent.prompt(session, [helpers.text_block("wait")]))
        await editor.begun.wait()
        await agent.cancel(session)
        assert (await turn).stop_reason == "cancelled"
