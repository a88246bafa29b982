"""Going back and forward in a session, with files that the user changes too."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcode.session import Session
from tests.core.conftest import Open, call, collect
from tests.core.test_checkpoint import contents

LINES = "".join(f"line {number}\n" for number in range(20))


def edit(old: str, new: str, path: str = "long.txt") -> dict[str, object]:
    return {"calls": [call("str_replace", path=path, old=old, new=new)]}


@pytest.fixture
async def session(open_session: Open, workspace: Path) -> Session:
    """Two turns: the first writes in three steps, the second in one."""
    (workspace / "long.txt").write_text(LINES)
    session = await open_session(
        edit("line 3\n", "line three\n"),
        {"calls": [call("create", path="new.py", content="x\n")]},
        {"calls": [call("bash", command="rm calc.py; echo 1 > made.txt")]},
        {"text": "first done"},
        edit("line 15\n", "line fifteen\n"),
        {"text": "second done"},
        {"text": "third done"},
    )
    await collect(session, "first")
    await collect(session, "second")
    return session


async def test_rewind_takes_files_and_messages_back_and_redo_brings_them(session: Session, workspace: Path) -> None:
    after, said = contents(workspace), session.messages
    points = session.history.points()
    assert [(point.kind, point.title) for point in points] == [
        ("step", "str_replace long.txt"),
        ("turn", "second"),
        ("step", "bash rm calc.py; echo 1 > made.txt"),
        ("step", "create new.py"),
        ("step", "str_replace long.txt"),
        ("turn", "first"),
    ]
    assert await session.history.rewind(points[-1].mark) == "took back 'first': 4 files changed accordingly"
    assert (workspace / "long.txt").read_text() == LINES
    assert sorted(contents(workspace)) == ["calc.py", "long.txt"]
    assert [message.role for message in session.messages] == ["system"]
    assert "4 files" in await session.history.redo()
    assert (contents(workspace), session.messages) == (after, said)
    assert await session.history.redo() == "there is nothing to bring back"


async def test_rewind_to_a_step_keeps_what_came_before_it_in_the_turn(session: Session, workspace: Path) -> None:
    step = next(point for point in session.history.points() if point.title.startswith("bash"))
    await session.history.rewind(step.mark)
    assert (workspace / "long.txt").read_text() == LINES.replace("line 3\n", "line three\n")
    assert sorted(contents(workspace)) == ["calc.py", "long.txt", "new.py"]
    assert session.messages[-1].role == "tool"
    await session.undo()
    assert ((workspace / "long.txt").read_text(), sorted(contents(workspace))) == (LINES, ["calc.py", "long.txt"])
    await session.history.redo()
    assert "new.py" in contents(workspace)
    await session.history.redo()
    assert "made.txt" in contents(workspace)
    assert (workspace / "long.txt").read_text() == LINES.replace("line 3\n", "line three\n").replace(
        "line 15\n", "line fifteen\n"
    )


async def test_what_the_user_changed_since_is_merged_or_left_alone(session: Session, workspace: Path) -> None:
    (workspace / "mine.txt").write_text("mine\n")
    (workspace / "new.py").write_text("x = 'mine'\n")
    (workspace / "long.txt").write_text((workspace / "long.txt").read_text().replace("line 9\n", "line nine\n"))
    assert "own changes since are kept in long.txt" in await session.undo()
    mine = LINES.replace("line 9\n", "line nine\n")
    assert (workspace / "long.txt").read_text() == mine.replace("line 3\n", "line three\n")
    said = await session.undo()
    assert "left as you have them now, since they cannot be merged: new.py" in said
    assert (workspace / "long.txt").read_text() == mine
    assert (workspace / "mine.txt").read_text() == "mine\n"
    assert (workspace / "new.py").read_text() == "x = 'mine'\n"
    assert (workspace / "calc.py").exists()
    assert not (workspace / "made.txt").exists()


async def test_what_the_user_changed_between_two_turns_is_nobodys_to_take_back(open_session: Open, workspace: Path) -> None:
    session = await open_session(
        edit("a - b", "a + b", "calc.py"), {"text": "ok"}, edit("a + b", "b + a", "calc.py"), {"text": "ok"}
    )
    await collect(session, "first")
    (workspace / "calc.py").write_text("# mine\n\n\n\n" + (workspace / "calc.py").read_text())
    (workspace / "mine.txt").write_text("mine\n")
    await collect(session, "second")
    await session.undo()
    await session.undo()
    assert (workspace / "calc.py").read_text() == "# mine\n\n\n\ndef add(a, b):\n    return a - b\n"
    assert (workspace / "mine.txt").exists()


async def test_what_is_said_after_a_rewind_ends_its_redoing(session: Session) -> None:
    await session.undo()
    await collect(session, "third")
    assert await session.history.redo() == "there is nothing to bring back"
