"""AGENTS.md: the user's, the repository's, and those of deeper folders when they are first touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcode.instructions import MAX_BYTES
from kcode.paths import Paths
from kcode.session import Session
from kcode.settings import Settings
from tests.core.conftest import Open, call, collect

WALLS = Settings(sandbox="workspace-write", approval_mode="auto")
DONE = {"text": "Done."}


def first(session: Session) -> str:
    return next(message.text for message in session.messages if message.role == "user")


def results(session: Session) -> list[str]:
    return [result.text for message in session.messages for result in message.results]


async def test_they_stand_before_the_first_message_from_the_user_s_to_the_deepest(
    open_session: Open, workspace: Path, paths: Paths, tmp_path: Path
) -> None:
    paths.config.mkdir(parents=True)
    (paths.config / "AGENTS.md").write_text("mine: be kind\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / "AGENTS.md").write_text("root: use tabs\n")
    (workspace / "AGENTS.md").write_text("here: use spaces\n")
    (workspace / "CLAUDE.md").write_text("not read\n")
    session = await open_session(DONE, DONE, settings=WALLS)
    head = session.messages
    await collect(session, "fix it")
    await collect(session, "go on")
    assert session.messages[: len(head)] == head
    text = first(session)
    places = [text.index(said) for said in ("mine: be kind", "root: use tabs", "here: use spaces", "fix it")]
    assert places == sorted(places)
    assert "not read" not in text
    assert [message.text for message in session.messages if message.role == "user"][1] == "go on"


async def test_without_any_nothing_is_added_and_claude_md_takes_its_place(open_session: Open, workspace: Path) -> None:
    session = await open_session(DONE, settings=WALLS)
    await collect(session, "fix it")
    assert first(session) == "fix it"
    (workspace / "CLAUDE.md").write_text("fallback\n")
    session = await open_session(DONE, settings=WALLS)
    await collect(session, "fix it")
    assert "--- CLAUDE.md\nfallback" in first(session)


async def test_deeper_ones_come_with_the_first_touch_and_once(open_session: Open, workspace: Path) -> None:
    for folder, text in (("a", "in a"), ("a/b", "in b"), ("c", "in c")):
        (workspace / folder).mkdir()
        (workspace / folder / "AGENTS.md").write_text(text)
        (workspace / folder / "x.py").write_text("x = 1\n")
    look, again = call("read", path="a/b/x.py"), call("read", path=str(workspace / "a" / "x.py"))
    session = await open_session({"calls": [look]}, {"calls": [again]}, DONE, settings=WALLS)
    await collect(session, "look")
    deep, known = results(session)
    assert "[instructions for a/, from a/AGENTS.md]\nin a\n\n[instructions for a/b/, from a/b/AGENTS.md]\nin b" in deep
    assert "instructions for" not in known
    await session.close()
    session = await open_session({"calls": [look, call("read", path="c/x.py")]}, DONE, resume_id=session.id, settings=WALLS)
    await collect(session, "once more")
    assert ["in b" in text for text in results(session)] == [True, False, False, False]
    assert "in c" in results(session)[-1]


@pytest.mark.parametrize("outside", [False, True], ids=["workspace", "repository"])
async def test_a_link_to_what_the_walls_hide_is_not_followed(
    open_session: Open, workspace: Path, tmp_path: Path, outside: bool
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the key\n")
    (tmp_path / ".git").mkdir()
    ((tmp_path if outside else workspace) / "AGENTS.md").symlink_to(secret)
    session = await open_session(DONE, settings=WALLS)
    await collect(session, "fix it")
    assert first(session) == "fix it"


async def test_what_is_too_long_is_cut_and_said(open_session: Open, workspace: Path, paths: Paths) -> None:
    paths.config.mkdir(parents=True)
    (paths.config / "AGENTS.md").write_text("mine\n" + "m" * 3000)
    (workspace / "AGENTS.md").write_text("begin\n" + "x" * (MAX_BYTES - 1000))
    session = await open_session(DONE, settings=WALLS)
    await collect(session, "fix it")
    text = first(session)
    assert len(text) < MAX_BYTES + 1000
    assert text.index("mine\nm") < text.index("[cut]") < text.index("begin")
    (notice,) = session.notices
    assert f"{paths.config / 'AGENTS.md'} has 3005 bytes, of which the model is given" in notice.text
