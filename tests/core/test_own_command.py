"""A command that the user runs: in the session's shell, unasked, told to the model with the next message, kept on disk."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from kcode.approval import Question, Reply
from kcode.events import OWN_COMMAND, CallFinished, CallOutput, Event, TurnFinished
from kcode.export import markdown
from kcode.session import Session
from kcode.settings import Settings
from kcode.transcript import Ran
from kcode.tui.call_block import Call
from kcode.tui.replay import blocks_of
from tests.core.conftest import Open, call, collect, ending

NEVER_ASKS = Settings(sandbox="danger-full-access", approval_mode="plan")


async def run(session: Session, command: str) -> list[Event]:
    async with aclosing(session.submit(command, as_command=True)) as events:
        return [event async for event in events]


async def test_it_runs_unasked_in_the_shared_shell_and_the_model_reads_of_it_next(open_session: Open, workspace: Path) -> None:
    session = await open_session({"text": "I see."}, settings=NEVER_ASKS)
    await run(session, "mkdir sub && cd sub && echo made > new.txt")
    events = await run(session, "cat new.txt; pwd; (exit 3)")
    (finished,) = (event for event in events if isinstance(event, CallFinished))
    assert finished.result.text == f"made\n{workspace}/sub\n[exit code 3]"
    assert finished.result.is_error
    assert (ending(events).status, ending(events).reason, ending(events).steps) == ("finished", OWN_COMMAND, 0)
    assert (workspace / "sub" / "new.txt").read_text() == "made\n"
    assert ending(await collect(session, "and now?")).result == "I see."
    roles = [message.role for message in session.messages]
    assert roles == ["system", "user", "user", "user", "assistant"]
    told = session.messages[2].text
    assert "$ cat new.txt; pwd; (exit 3)\nmade\n" in told
    assert told.endswith("[exit code 3]")


async def test_a_resumed_session_shows_it_and_an_export_has_it(open_session: Open) -> None:
    session = await open_session()
    await run(session, "echo shown; echo $((40 + 2))")
    before, session_id = list(session.records), session.id
    await session.close()
    resumed = await open_session(resume_id=session_id)
    assert list(resumed.records)[: len(before)] == before
    (ran,) = (record for record in resumed.records if isinstance(record, Ran))
    assert ran.result.text == "shown\n42"
    said, shown = blocks_of(resumed.records)
    assert isinstance(shown, Call)
    assert (shown.state, shown.expanded, getattr(said, "text", "")) == ("done", True, "!echo shown; echo $((40 + 2))")
    assert "shown\n42" in markdown(resumed.records)


async def test_stopping_it_ends_it_and_says_so(open_session: Open) -> None:
    session = await open_session({"text": "I see."})
    seen: list[Event] = []
    async with asyncio.timeout(30), aclosing(session.submit("echo begun; sleep 60", as_command=True)) as events:
        async for event in events:
            seen.append(event)
            if isinstance(event, CallOutput):
                session.interrupt()
    assert isinstance(seen[-1], TurnFinished)
    assert seen[-1].status == "interrupted"
    assert "$ echo begun; sleep 60\n[the user stopped it]" in session.messages[-1].text
    assert ending(await collect(session, "why?")).result == "I see."


async def test_who_is_asked_may_interrupt_and_the_turn_still_ends_in_order(open_session: Open) -> None:
    async def interrupting(question: Question) -> Reply:
        session.interrupt()
        return Reply("deny")

    asking = Settings(sandbox="danger-full-access", approval_mode="ask")
    session = await open_session({"calls": [call("bash", command="ls")]}, ask=interrupting, settings=asking)
    events = await collect(session, "go")
    # The script has no second answer: the turn has failed by then, or was stopped while it waited.
    assert ending(events).status in {"error", "interrupted"}
    assert session.messages[-1].role == "tool"


async def test_what_it_changed_can_be_taken_back(open_session: Open, workspace: Path) -> None:
    session = await open_session()
    await run(session, "echo overwritten > calc.py")
    await session.undo()
    assert (workspace / "calc.py").read_text().startswith("def add")
    assert [message.role for message in session.messages] == ["system"]


async def test_the_user_has_a_shell_though_the_profile_offers_none(open_session: Open) -> None:
    session = await open_session(settings=Settings(sandbox="danger-full-access", profile="small"))
    assert all(tool.name != "bash" for tool in session.equipment.tools)
    finished = next(event for event in await run(session, "echo here") if isinstance(event, CallFinished))
    assert finished.result.text == "here"
