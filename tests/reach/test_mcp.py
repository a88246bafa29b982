"""Tool servers (MCP): real servers made with the SDK, over stdio and HTTP, through a session."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcode import Session
from kcode.approval import Question, Reply
from kcode.errors import ConfigError
from kcode.mcp.config import ServerConfig
from kcode.mcp.connection import Connection
from kcode.paths import find_paths
from kcode.trust import trust

SERVER = Path(__file__).with_name("tool_server.py")
PLAIN = Path(__file__).with_name("plain_server.py")
STDIO = f"[mcp.shop]\ncommand = {json.dumps(sys.executable)}\nargs = [{json.dumps(str(SERVER))}]\nstart_timeout_s = 120\n"
QUICK = STDIO.replace(SERVER.name, PLAIN.name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace; kcode's home is beside it."""
    monkeypatch.delenv("KCODE_TEST_MODEL", raising=False)
    monkeypatch.setenv("KCODE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KCODE_SANDBOX", "danger-full-access")
    (tmp_path / "home" / "config").mkdir(parents=True)
    (tmp_path / "workspace").mkdir()
    return (tmp_path / "workspace").resolve()


def configure(folder: Path, text: str) -> None:
    (folder.parent / "home" / "config" / "config.toml").write_text(text)


def scripted(folder: Path, *calls: tuple[str, dict[str, object]]) -> str:
    replies = [{"calls": [{"name": name, "arguments": arguments}]} for name, arguments in calls]
    script = folder.parent / "script.json"
    script.write_text(json.dumps({"replies": [*replies, {"text": "done"}], "sees": True}))
    return f"scripted:{script}"


def results(session: Session) -> list[tuple[str, bool]]:
    return [(result.text, result.is_error) for message in session.messages for result in message.results]


async def test_tools_over_stdio_with_schema_caps_and_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.setenv("MINE", "given")
    configure(folder, STDIO + 'env = { TOKEN = "${MINE}" }\n')
    model = scripted(
        folder,
        ("mcp__shop__add", {"a": 2, "b": 3}),
        ("mcp__shop__add", {"a": "two"}),
        ("mcp__shop__environment", {}),
        ("mcp__shop__many", {"lines": 9000}),
        ("mcp__shop__picture", {}),
    )
    async with Session(folder, model=model) as session:
        assert session.notices == ()
        assert (await session.run("use them")).ok
        added, wrong, environment, many, picture = results(session)
        images = [image for message in session.messages for result in message.results for image in result.images]
    assert added == ("5", False)
    assert wrong[1]
    assert "Wrong arguments for mcp__shop__add" in wrong[0]
    assert "TOKEN=given" in environment[0]
    assert "SECRET" not in environment[0]
    assert "KCODE_HOME" not in environment[0]
    assert len(many[0]) < 11_000
    assert "all of it is in /tmp/kcode-" in many[0]
    assert picture == ("[picture 1, image/png]", False)
    assert [image.media_type for image in images] == ["image/png"]


async def test_a_call_needs_approval_as_any_other(folder: Path) -> None:
    configure(folder, QUICK)
    asked: list[str] = []

    async def no(question: Question) -> Reply:
        asked.append(question.summary)
        return Reply("deny", "not now")

    async with Session(folder, model=scripted(folder, ("mcp__shop__add", {"a": 1, "b": 1})), ask=no) as session:
        await session.run("add")
        ((text, is_error),) = results(session)
    assert asked == ['shop: add {"a": 1, "b": 1}']
    assert is_error
    assert "not now" in text


async def test_a_server_that_ends_is_an_error_and_is_started_anew(folder: Path) -> None:
    configure(folder, QUICK)
    model = scripted(folder, ("mcp__shop__leave", {}), ("mcp__shop__add", {"a": 1, "b": 1}))
    async with Session(folder, model=model) as session:
        assert (await session.run("go")).ok
        (left, added) = results(session)
    assert left[1]
    assert added == ("2", False)


async def test_a_server_that_fails_is_one_notice(folder: Path) -> None:
    configure(folder, '[mcp.gone]\ncommand = "/does/not/exist"\n\n[mcp.mute]\ncommand = "true"\n')
    async with Session(folder, model=scripted(folder)) as session:
        assert (await session.run("hello")).text == "done"
        assert [notice.text.split(":")[0] for notice in session.notices] == ["tool server gone", "tool server mute"]


async def test_a_folder_brings_servers_only_when_it_is_trusted(folder: Path) -> None:
    servers = {"shop": {"command": sys.executable, "args": [str(PLAIN)], "start_timeout_s": 120}}
    (folder / ".mcp.json").write_text(json.dumps({"mcpServers": servers}))
    model = scripted(folder, ("mcp__shop__add", {"a": 1, "b": 1}))
    async with Session(folder, model=model) as session:
        await session.run("add")
        assert results(session)[0][1], "there was such a tool"
        assert [".mcp.json is not read" in notice.text for notice in session.notices] == [True]
    trust(find_paths(), folder)
    async with Session(folder, model=model) as session:
        await session.run("add")
        assert results(session) == [("2", False)]


async def test_a_wrong_configuration_names_file_and_place(folder: Path) -> None:
    configure(folder, "[mcp.shop]\nargs = []\n")
    with pytest.raises(ConfigError, match=r"config\.toml: mcp\.shop: .*either command or url"):
        async with Session(folder, model=scripted(folder)):
            raise AssertionError("it opened")


@pytest.fixture
def address() -> Iterator[str]:
    """Of a server over HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(SERVER), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


async def test_tools_over_http(folder: Path, address: str) -> None:
    configure(folder, f'[mcp.shop]\nurl = "{address}"\nstart_timeout_s = 120\n')
    async with Session(folder, model=scripted(folder, ("mcp__shop__add", {"a": 20, "b": 3}))) as session:
        assert session.notices == ()
        await session.run("add")
        assert results(session) == [("23", False)]


async def test_a_server_that_stays_when_it_should_end_is_killed(folder: Path, tmp_path: Path) -> None:
    config = ServerConfig(command=sys.executable, args=(str(PLAIN), "stay"), start_timeout_s=120)
    connection = Connection("stay", config, folder, tmp_path / "logs")
    assert [tool.name for tool in await connection.tools()] == ["add", "leave"]
    async with asyncio.timeout(60):
        await connection.close()
