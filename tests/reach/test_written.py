"""Commands, skills and hooks that somebody wrote: real files, real sessions, a scripted model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from kcode.custom_commands import RESERVED, CustomCommand, expand
from kcode.errors import ConfigError
from kcode.events import CallFinished, Event, Notice, TurnFinished
from kcode.opening import Sessions
from kcode.paths import Paths, find_paths
from kcode.session import Session
from kcode.settings import Settings
from kcode.skills import MAX_LISTED_BYTES, Skill, listed
from kcode.trust import trust
from kcode.tui.commands import COMMANDS

Open = Callable[..., Awaitable[Session]]
DONE = {"text": "Done."}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = (tmp_path / "workspace").resolve()
    folder.mkdir()
    return folder


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return find_paths({"KCODE_HOME": str(tmp_path / "home")})


@pytest.fixture
async def open_session(workspace: Path, paths: Paths, tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[Session] = []

    async def open_it(*replies: dict[str, object], sandbox: str = "danger-full-access") -> Session:
        script = tmp_path / "script.json"
        script.write_text(json.dumps({"replies": replies}))
        settings = Settings(sandbox="workspace-write" if sandbox == "workspace-write" else "danger-full-access")
        session = await Sessions(settings, workspace, paths, "auto").open(None, f"scripted:{script}", None)
        opened.append(session)
        return session

    yield open_it
    for session in opened:
        await session.close()


async def turn(session: Session, text: str) -> list[Event]:
    async with aclosing(session.submit(text)) as events:
        return [event async for event in events]


def put(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def asked(session: Session) -> list[str]:
    return [message.text for message in session.messages if message.role == "user"]


def warnings(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice) and event.level == "warning"]


def bash(command: str) -> dict[str, object]:
    return {"calls": [{"name": "bash", "arguments": {"command": command}}]}


def test_arguments_take_their_places() -> None:
    command = CustomCommand("fix", "", "Fix $1 in $2 ($ARGUMENTS); $3!", "")
    assert expand("/fix bug calc.py", [command]) == "Fix bug in calc.py (bug calc.py); !"
    assert expand("/fixed bug", [command]) == "/fixed bug"
    assert expand("see /fix bug", [command]) == "see /fix bug"
    assert expand("/plain a\nb", [CustomCommand("plain", "", "Say it.", "")]) == "Say it.\n\na\nb"


async def test_commands_become_the_message_and_the_user_s_come_first(open_session: Open, workspace: Path, paths: Paths) -> None:
    put(workspace, ".kcode/commands/review.md", "---\ndescription: look at it\nargument-hint: '[file]'\n---\nReview $1.\n")
    put(workspace, ".kcode/commands/git/log.md", "Tell the log.")
    put(workspace, ".kcode/commands/same.md", "the repository's")
    put(paths.config, "commands/same.md", "the user's")
    session = await open_session(DONE, DONE, DONE)
    assert [(one.name, one.summary) for one in session.commands] == [
        ("git:log", "Tell the log."),
        ("review", "[file] look at it"),
        ("same", "the user's"),
    ]
    await turn(session, "/review calc.py")
    await turn(session, "/git:log")
    await turn(session, "/same")
    assert asked(session) == ["Review calc.py.", "Tell the log.", "the user's"]


async def test_files_that_are_no_commands_are_named(open_session: Open, workspace: Path, tmp_path: Path) -> None:
    put(workspace, ".kcode/commands/undo.md", "mine")
    put(workspace, ".kcode/commands/Bad Name.md", "x")
    put(workspace, ".kcode/commands/head.md", "---\na: [\n---\nx")
    put(workspace, ".kcode/commands/empty.md", "")
    put(tmp_path, "secret.md", "secret")
    (workspace / ".kcode/commands/link.md").symlink_to(tmp_path / "secret.md")
    session = await open_session(DONE)
    told = "\n".join(notice.text for notice in session.notices)
    for said in ("/undo is kcode's own", "'Bad Name'", "not valid YAML", "it has no text"):
        assert said in told
    assert all("secret" not in command.text for command in session.commands)


async def test_skills_are_listed_once_and_read_inside(open_session: Open, workspace: Path, paths: Paths) -> None:
    put(paths.config, "skills/pdf/SKILL.md", "---\nname: pdf\ndescription: about PDF files\n---\nUse the tool X.")
    put(workspace, ".agents/skills/tests/SKILL.md", "---\ndescription: how tests are run here\n---\nRun make.")
    put(workspace, ".kcode/skills/broken/SKILL.md", "no head")
    file = paths.config.resolve() / "skills/pdf/SKILL.md"
    session = await open_session(bash(f"cat {file}; echo x >> {file}"), DONE, DONE, sandbox="workspace-write")
    assert "broken/SKILL.md is no skill" in "\n".join(notice.text for notice in session.notices)
    events = await turn(session, "read the PDF")
    first = asked(session)[0]
    assert f"- pdf ({file}): about PDF files" in first
    assert "- tests (.agents/skills/tests/SKILL.md): how tests are run here" in first
    result = next(event.result.text for event in events if isinstance(event, CallFinished))
    assert "Use the tool X." in result
    assert file.read_text().endswith("Use the tool X.")
    await turn(session, "/tests now")
    assert asked(session)[1] == "Use the skill tests: read .agents/skills/tests/SKILL.md and do as it says.\n\nnow"


def test_the_list_of_skills_is_bounded() -> None:
    text, notices = listed([Skill(f"s{number}", "d" * 400, "f") for number in range(50)])
    assert len(text.encode()) <= MAX_LISTED_BYTES
    assert "not listed" in notices[0].text


def hooks(paths: Paths, text: str) -> None:
    put(paths.config, "config.toml", text)


async def test_a_hook_refuses_a_call_and_another_adds_to_its_result(open_session: Open, workspace: Path, paths: Paths) -> None:
    hooks(
        paths,
        "[[hooks.before_tool]]\ntools = 'bash'\n"
        "command = 'grep -q forbidden && { echo not this one >&2; exit 2; }; exit 0'\n"
        "[[hooks.after_tool]]\ntools = 'bash|create'\ncommand = 'cat > seen.json; echo linted'\n",
    )
    session = await open_session(bash("echo forbidden > a"), bash("echo fine > b"), DONE, sandbox="workspace-write")
    events = await turn(session, "go")
    refused, done = [event.result for event in events if isinstance(event, CallFinished)]
    assert refused.is_error
    assert "not this one" in refused.text
    assert not (workspace / "a").exists()
    assert done.text.endswith("[hook] linted")
    told = json.loads((workspace / "seen.json").read_text())
    assert (told["event"], told["tool"], told["arguments"]["command"]) == ("after_tool", "bash", "echo fine > b")


async def test_a_hook_sends_the_model_on_and_a_failing_one_is_told(open_session: Open, workspace: Path, paths: Paths) -> None:
    hooks(
        paths,
        "[[hooks.end_of_turn]]\ncommand = 'test -e done || { echo make the file done >&2; exit 2; }'\n"
        "[[hooks.end_of_turn]]\ncommand = 'echo broken >&2; exit 1'\n",
    )
    session = await open_session(DONE, bash("touch done"), DONE, sandbox="workspace-write")
    events = await turn(session, "go")
    assert asked(session) == ["go", "make the file done"]
    assert isinstance(events[-1], TurnFinished)
    assert events[-1].status == "finished"
    assert any("ended with 1: broken" in text for text in warnings([*events, *session.notices]))


async def test_a_hook_that_never_agrees_is_asked_a_few_times(open_session: Open, paths: Paths) -> None:
    hooks(paths, "[[hooks.end_of_turn]]\ncommand = 'echo again >&2; exit 2'\n")
    session = await open_session(*[DONE] * 6)
    events = await turn(session, "go")
    assert asked(session) == ["go", "again", "again", "again"]
    assert any("refused the end of the turn, which ended all the same: again" in text for text in warnings(events))


async def test_the_last_round_is_asked_too(open_session: Open, workspace: Path, paths: Paths) -> None:
    command = "echo x >> asked; test $(wc -l < asked) -gt 3 || { echo again >&2; exit 2; }"
    hooks(paths, f"[[hooks.end_of_turn]]\ncommand = '{command}'\n")
    session = await open_session(*[DONE] * 6, sandbox="workspace-write")
    events = await turn(session, "go")
    assert asked(session) == ["go", "again", "again", "again"]
    assert (workspace / "asked").read_text() == "x\n" * 4
    assert not warnings(events)


async def test_a_pattern_that_names_no_tool_is_told(open_session: Open, paths: Paths) -> None:
    hooks(
        paths,
        "[[hooks.before_tool]]\ntools = 'bash|str_replace'\ncommand = 'true'\n"
        "[[hooks.after_tool]]\ntools = 'write_file'\ncommand = 'false'\n",
    )
    session = await open_session(DONE)
    told = [notice.text for notice in session.notices if "never runs" in notice.text]
    assert told == ["the hook 'false' never runs: no tool is called 'write_file'"]


async def test_a_skill_with_a_name_of_kcode_s_own_has_no_command(open_session: Open, workspace: Path) -> None:
    put(workspace, ".kcode/skills/export/SKILL.md", "---\ndescription: how data leaves this project\n---\nRun it.")
    session = await open_session(DONE)
    assert "export" not in [command.name for command in session.commands]
    assert any("/export is kcode's own" in notice.text for notice in session.notices)
    await turn(session, "go")
    assert "how data leaves this project" in asked(session)[0]


def test_no_command_of_the_screen_can_be_taken() -> None:
    assert {command.name for command in COMMANDS} <= RESERVED


async def test_a_folder_s_hooks_count_when_it_is_trusted_and_stay_inside(
    open_session: Open, workspace: Path, paths: Paths, tmp_path: Path
) -> None:
    put(workspace, ".kcode/config.toml", f"[[hooks.after_tool]]\ncommand = 'echo ran; echo x > {tmp_path}/out || true'\n")
    session = await open_session(bash("true"), DONE, sandbox="workspace-write")
    untrusted = [event.result.text for event in await turn(session, "go") if isinstance(event, CallFinished)]
    trust(paths, workspace)
    session = await open_session(bash("true"), DONE, sandbox="workspace-write")
    trusted = [event.result.text for event in await turn(session, "go") if isinstance(event, CallFinished)]
    assert "ran" not in untrusted[0]
    assert "[hook] ran" in trusted[0]
    assert not (tmp_path / "out").exists()
    put(workspace, ".kcode/config.toml", "[[hooks.after_tool]]\ncommand = 'true'\nwhere = 'host'\n")
    with pytest.raises(ConfigError, match="a folder's hooks run in the sandbox"):
        await open_session(DONE)


async def test_the_user_s_own_may_run_on_the_host_within_their_time(open_session: Open, paths: Paths, tmp_path: Path) -> None:
    hooks(
        paths,
        f"[[hooks.after_tool]]\nwhere = 'host'\ncommand = 'cat > {tmp_path}/told'\n"
        "[[hooks.after_tool]]\nwhere = 'host'\ntimeout_s = 0.2\ncommand = 'sleep 60'\n",
    )
    session = await open_session(bash("echo hi"), DONE, sandbox="workspace-write")
    events = await turn(session, "go")
    assert "hi" in json.loads((tmp_path / "told").read_text())["result"]
    assert any("was killed after 0.2 s" in text for text in warnings(events))


@pytest.mark.parametrize("text", ["[[hooks.before_tool]]\ntools = '('\ncommand = 'x'\n", "[[hooks.sometimes]]\ncommand = 'x'\n"])
async def test_wrong_hooks_stop_the_start_with_their_place(open_session: Open, paths: Paths, text: str) -> None:
    hooks(paths, text)
    with pytest.raises(ConfigError, match=r"config.toml: hooks\."):
        await open_session(DONE)
