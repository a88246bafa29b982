"""What a driver can do with a turn, over the real session machinery."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kcode.approval import Approval
from kcode.checkpoint import Checkpoints
from kcode.context import Context
from kcode.events import CallFinished, Event, StepStarted, TurnFinished
from kcode.messages import Message, system
from kcode.model import Sampling
from kcode.models.scripted import Reply, Script, ScriptedCall, ScriptedModel
from kcode.opening import open_policy
from kcode.paths import Paths
from kcode.profiles import GENERIC
from kcode.session import Equipment, Session
from kcode.settings import Settings
from kcode.steps import Driver, Steps
from kcode.tools.toolbox import build_specs, build_tools
from kcode.transcript import TurnEnd, create
from kcode.turn import Ask, Ending, Limits
from tests.core.conftest import collect, ending

Begin = Callable[..., Awaitable[tuple[Session, ScriptedModel]]]
ENDED = Ending("finished", "driven")


@pytest.fixture
async def begin(workspace: Path, paths: Paths, tmp_path: Path) -> AsyncIterator[Begin]:
    """Opens a session that a driver of the test's own drives; its model tells what it was asked."""
    opened: list[Session] = []

    async def begin_it(driver: Driver, *replies: Reply, limits: Limits | None = None) -> tuple[Session, ScriptedModel]:
        sandbox = await open_policy(Settings(sandbox="danger-full-access"), workspace, paths)
        model = ScriptedModel(Script(replies=replies))
        tools = build_tools(sandbox, GENERIC.tools, model)
        equipment = Equipment(
            model=model,
            sandbox=sandbox,
            tools=tools,
            specs=build_specs(tools),
            profile=GENERIC,
            limits=limits or Limits(),
            sampling=Sampling(),
            driver=driver,
            approval=Approval("auto", None, no_work_to_lose),
            checkpoints=Checkpoints(workspace, tmp_path / "store"),
        )
        transcript = create(paths.sessions(workspace), workspace, "0.1.0")
        context = Context(transcript, None)
        context.add(system("head"))
        session = Session(equipment, transcript, context)
        opened.append(session)
        return session, model

    yield begin_it
    for session in opened:
        await session.close()


def creates(path: str) -> Reply:
    return Reply(calls=(ScriptedCall(name="create", arguments={"path": path, "content": "x\n"}),))


async def no_work_to_lose() -> bool:
    return False


async def test_driver_makes_calls_of_its_own_that_the_model_sees(begin: Begin) -> None:
    async def drive(steps: Steps, text: str) -> Ending:
        steps.say(text)
        called = await steps.run("read", {"path": "calc.py"}, "I read the file first.")
        assert "return a - b" in called.result.text
        answer = await steps.ask()
        return Ending("finished", "driven", answer.message.text, attempts=2)

    session, model = await begin(drive, Reply(text="I see."))
    events = await collect(session, "look")
    assert ending(events).attempts == 2
    roles = [message.role for message in model.requests[0].messages]
    assert roles == ["system", "user", "assistant", "tool"]
    assert model.requests[0].messages[2].text == "I read the file first."
    assert model.requests[0].messages[2].calls[0].id == "functions.read:0"


async def test_probe_is_seen_by_the_person_and_not_by_the_model(begin: Begin) -> None:
    async def drive(steps: Steps, text: str) -> Ending:
        called = await steps.probe("bash", {"command": "echo probed"})
        return Ending("finished", "", called.result.text)

    session, _ = await begin(drive)
    events = await collect(session, "go")
    assert [event.result.text for event in events if isinstance(event, CallFinished)] == ["probed"]
    assert [message.role for message in session.messages] == ["system"]


async def test_ask_hands_everything_to_the_model(begin: Begin) -> None:
    how = Ask("none", grammar="start: /a/", prefix="def ", stop=("END",), sampling=Sampling(seed=3, max_tokens=50))

    async def drive(steps: Steps, text: str) -> Ending:
        await steps.ask(how, say=f"<{text}>")
        return ENDED

    session, model = await begin(drive, Reply(text="a"))
    await collect(session, "go")
    (request,) = model.requests
    assert (request.tool_choice, request.grammar, request.prefix, request.stop) == ("none", "start: /a/", "def ", ("END",))
    assert (request.sampling, request.session_id) == (Sampling(seed=3, max_tokens=50), session.id)
    assert request.messages[-1].text == "<go>"


async def test_failed_attempt_is_taken_back_and_forgotten(begin: Begin, workspace: Path) -> None:
    seen: list[tuple[Message, ...]] = []

    async def drive(steps: Steps, text: str) -> Ending:
        steps.say(text)
        mark, clean = steps.mark(), await steps.snapshot()
        for _ in range(2):
            seen.append(steps.messages)
            answer = await steps.ask()
            await steps.call(answer.message.calls[0])
            if (workspace / "right.txt").exists():
                break
            assert "wrong.txt" in await steps.diff(clean)
            await steps.restore(clean)
            steps.rewind(mark)
        return ENDED

    session, _ = await begin(drive, creates("wrong.txt"), creates("right.txt"))
    await collect(session, "try")
    assert "right.txt" in await session.diff(last_turn=True)
    assert seen[0] == seen[1]
    assert sorted(os.listdir(workspace)) == ["calc.py", "right.txt"]
    assert "wrong" not in str(session.messages)
    assert "wrong" in session.transcript_path.read_text()


async def test_limits_hold_for_drivers_too(begin: Begin) -> None:
    async def drive(steps: Steps, text: str) -> Ending:
        steps.say(text)
        while True:
            await steps.ask()

    session, _ = await begin(drive, *[Reply(text="more")] * 5, limits=Limits(steps=2))
    events = await collect(session, "go")
    assert ending(events).status == "limit"
    assert sum(isinstance(event, StepStarted) for event in events) == 2


async def test_bug_in_a_driver_is_raised_after_everything_is_recorded(begin: Begin) -> None:
    async def drive(steps: Steps, text: str) -> Ending:
        await steps.ask(say=text)
        raise ZeroDivisionError("our own")

    session, _ = await begin(drive, creates("a.txt"))
    events: list[Event] = []

    async def listen() -> None:
        async for event in session.submit("go"):
            events.append(event)

    with pytest.raises(ZeroDivisionError):
        await listen()
    assert not any(isinstance(event, TurnFinished) for event in events)
    last = session.records[-1]
    assert isinstance(last, TurnEnd)
    assert (last.status, last.reason) == ("error", "kcode itself failed: ZeroDivisionError: our own")
    assert session.messages[-1].results[0].is_error
    assert not session.is_busy
