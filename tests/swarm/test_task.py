"""Sub-agents from the outside: real copies of the workspace, a real sandbox, a scripted model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kcode.approval import Question, Reply
from kcode.context import build
from kcode.events import AgentState, CallFinished, Event, StepFinished, TurnFinished
from kcode.messages import Message
from kcode.opening import Sessions
from kcode.session import Session
from kcode.settings import Settings
from kcode.transcript import TurnEnd, open_existing
from kcode.tui.app import KcodeApp
from kcode.tui.port import Launch
from tests.fakes.openai_server import Stream, delta, said, serving
from tests.fakes.tui_screen import enter, until
from tests.swarm.conftest import Json, Project, call, edit, events_of, step, task

END: Json = {"text": "all done"}


def agents_in(events: Sequence[Event]) -> list[AgentState]:
    return [event for event in events if isinstance(event, AgentState)]


def results(events: Sequence[Event]) -> list[str]:
    """Of the calls of `task`, in the order in which they were recorded."""
    return [event.result.text for event in events if isinstance(event, CallFinished) and event.call.name == "task"]


def ended(events: Sequence[Event]) -> TurnFinished:
    last = events[-1]
    assert isinstance(last, TurnFinished)
    return last


def conversation(session: Session, number: int) -> list[Message]:
    """What a sub-agent's model has read and said."""
    transcript = open_existing(session.transcript_path.with_suffix(".agents") / f"{number}.jsonl")
    transcript.close()
    return build(transcript.active)


def tokens_written(session: Session, number: int) -> int:
    """By a sub-agent's model."""
    transcript = open_existing(session.transcript_path.with_suffix(".agents") / f"{number}.jsonl")
    transcript.close()
    return sum(record.usage.completion_tokens for record in transcript.records if isinstance(record, TurnEnd))


def test_siblings_work_at_the_same_time_and_what_they_change_is_brought_over_in_order(project: Project) -> None:
    async def scene() -> None:
        beside: dict[str, list[Json]] = {
            "TOP": [*edit("a.py", "a1 = 1", "a1 = 'top'"), {"text": "top changed"}],
            "END": [*edit("a.py", "a10 = 10", "a10 = 'end'"), step(call("finish", summary="end changed"))],
        }
        replies = [step(call("read", path="b.py")), step(task("TOP"), task("END", fork=False), text="two parts"), END]
        async with project.open(replies, beside) as session:
            events = await events_of(session, "change both")
            states = agents_in(events)
            working = [state.agent for state in states if state.status == "working"]
            assert set(working[:2]) == {1, 2}, "the second one began before the first had ended"
            assert [state for state in states if state.agent == 2][-1].status == "finished"
            assert results(events) == [
                "top changed\n\n[brought over: a.py]",
                "end changed\n\n[brought over: a.py]",
            ]
            lines = (project.workspace / "a.py").read_text().splitlines()
            assert (lines[1], lines[10]) == ("a1 = 'top'", "a10 = 'end'")
            own = sum(event.usage.completion_tokens for event in events if isinstance(event, StepFinished))
            written = own + tokens_written(session, 1) + tokens_written(session, 2)
            assert ended(events).usage.completion_tokens == written > own
            forked, fresh = conversation(session, 1), conversation(session, 2)
            assert tuple(forked[:4]) == session.messages[:4], "a fork begins with what the parent has read"
            assert "TOP" in forked[4].text
            assert (fresh[0], "END" in fresh[1].text) == (session.messages[0], True)
            await session.undo()
            assert "top" not in (project.workspace / "a.py").read_text()

    asyncio.run(scene())
    assert project.clones() == []


def test_a_change_that_collides_is_told_and_its_patch_is_kept(project: Project) -> None:
    async def scene() -> None:
        beside: dict[str, list[Json]] = {
            "ONE": [*edit("b.py", "b = 1", "b = 'one'"), {"text": "one"}],
            "TWO": [*edit("b.py", "b = 1", "b = 'two'"), {"text": "two"}],
        }
        async with project.open([step(task("ONE"), task("TWO")), END], beside) as session:
            first, second = results(await events_of(session, "both"))
            assert first == "one\n\n[brought over: b.py]"
            assert "[not brought over: b.py: " in second
            named = second.rpartition("is in ")[2].rstrip("]")
            assert named.startswith("/tmp/kcode-")
            kept = session.transcript_path.with_suffix(".agents") / "2.patch"
            assert "+b = 'two'" in kept.read_text()
            assert (project.workspace / "b.py").read_text() == "b = 'one'\n"

    asyncio.run(scene())


def test_a_sub_agent_has_none_itself_and_changes_nothing_when_it_does_not_finish(project: Project) -> None:
    async def scene() -> None:
        beside: dict[str, list[Json]] = {
            "DEEP": [step(task("deeper")), *edit("b.py", "b = 1", "b = 2"), {"error": "the server is gone"}]
        }
        async with project.open([step(task("DEEP")), END], beside) as session:
            events = await events_of(session, "go")
            (text,) = results(events)
            assert text.startswith("The sub-agent did not finish: the server is gone")
            assert "[not brought over: b.py]" in text
            assert (project.workspace / "b.py").read_text() == "b = 1\n"
            assert ended(events).status == "finished"
            refused = next(result for message in conversation(session, 1) for result in message.results)
            assert (refused.is_error, refused.text.startswith("A sub-agent has no sub-agents")) == (True, True)

    asyncio.run(scene())


def test_one_can_be_stopped_and_the_others_go_on(project: Project) -> None:
    async def scene() -> None:
        beside: dict[str, list[Json]] = {"SLOW": [{"text": "never said", "delay_s": 600}], "QUICK": [{"text": "quick"}]}
        async with project.open([step(task("SLOW"), task("QUICK")), END], beside) as session:
            swarm = session.swarm
            assert swarm is not None

            stopped: list[bool] = []

            def stop_the_slow_one(event: Event) -> None:
                if isinstance(event, AgentState) and event.agent == 2 and event.steps == 1 and not stopped:
                    stopped.append(swarm.stop(1))

            events = await events_of(session, "go", stop_the_slow_one)
            assert stopped == [True]
            slow, quick = results(events)
            assert slow.startswith(("The sub-agent did not finish: the user stopped", "The user stopped the sub-agent"))
            assert quick.startswith("quick")
            assert [state.status for state in swarm.agents] == ["stopped", "finished"]
            assert not swarm.stop(1)
            assert not swarm.steer(2, "too late")

    asyncio.run(scene())


def test_an_interrupt_ends_the_sub_agents_and_their_copies(project: Project) -> None:
    async def scene() -> None:
        beside: dict[str, list[Json]] = {"SLOW": [*edit("b.py", "b = 1", "b = 2"), {"text": "never said", "delay_s": 600}]}
        async with project.open([step(task("SLOW")), END], beside) as session:

            def interrupt(event: Event) -> None:
                if isinstance(event, AgentState) and event.steps == 2:
                    session.interrupt()

            events = await events_of(session, "go", interrupt)
            assert ended(events).status == "interrupted"
            assert agents_in(events)[-1].status == "stopped"
            assert (project.workspace / "b.py").read_text() == "b = 1\n"
            assert project.clones() == []

    asyncio.run(scene())


def test_in_the_mode_ask_the_task_is_asked_about_and_in_the_mode_plan_it_only_reads(project: Project) -> None:
    async def scene() -> None:
        asked: list[str] = []

        async def ask(question: Question) -> Reply:
            asked.append(question.summary)
            return Reply("allow")

        beside: dict[str, list[Json]] = {
            "EDIT": [*edit("b.py", "b = 1", "b = 2"), {"text": "edited"}],
            "AGAIN": [*edit("b.py", "b = 2", "b = 3"), END],
        }
        async with project.open([step(task("EDIT")), END, step(task("AGAIN")), END], beside, ask=ask) as session:
            assert results(await events_of(session, "go")) == ["edited\n\n[brought over: b.py]"]
            assert asked == ["task: do EDIT"]
            session.set_approval_mode("plan")
            assert results(await events_of(session, "again")) == ["all done\n\n[it changed no files]"]
            assert asked == ["task: do EDIT"]
            assert (project.workspace / "b.py").read_text() == "b = 2\n"

    asyncio.run(scene())


def test_a_fork_asks_for_what_its_parent_asked_and_more(project: Project) -> None:
    """To the letter, tools included: or no server finds again what it has computed."""
    arguments = json.dumps({"description": "look", "prompt": "Look at b.py."})
    calls = [{"index": 0, "id": "c1", "type": "function", "function": {"name": "task", "arguments": arguments}}]
    sends = Stream((delta(role="assistant", tool_calls=calls), delta("tool_calls"), "data: [DONE]"))

    async def scene(url: str) -> None:
        settings = Settings(model="kimi-k2-thinking", base_url=url, seed=7)
        session = await Sessions(settings, project.workspace, project.paths, "auto").open(None, None, None)
        try:
            assert results(await events_of(session, "look around")) == ["seen\n\n[it changed no files]"]
        finally:
            await session.close()

    with serving(sends, said("seen"), said("all done")) as seen:
        asyncio.run(scene(seen.url))
    first, child, second = seen.bodies
    assert first["tools"] == child["tools"] == second["tools"]
    asked, known = first["messages"], child["messages"]
    assert isinstance(asked, list)
    assert isinstance(known, list)
    assert known[: len(asked)] == asked
    assert len(known) == len(asked) + 1
    assert (first["seed"], child["seed"]) == (7, 8)


def test_a_headless_run_tells_how_each_stands(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = project.write([step(task("LOOK")), END], {"LOOK": [step(call("read", path="b.py")), {"text": "seen"}]})
    monkeypatch.setenv("KCODE_HOME", str(tmp_path / "home"))
    command = [sys.executable, "-m", "kcode", "-p", "go", "-m", f"scripted:{script}", "--output-format", "stream-json"]
    done = subprocess.run(command, cwd=project.workspace, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    told = [(line["agent"], line["status"], line["steps"], line["doing"]) for line in lines if line.get("subtype") == "agent"]
    assert told == [
        (1, "waiting", 0, ""),
        (1, "working", 0, ""),
        (1, "working", 1, ""),
        (1, "working", 1, "read b.py"),
        (1, "working", 2, "read b.py"),
        (1, "finished", 2, "the model answered without a call"),
    ]


def test_after_a_kill_the_session_goes_on_and_the_copies_are_swept(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow: Json = {"text": "never said", "delay_s": 600}
    script = project.write([step(task("SLOW"))], {"SLOW": [*edit("b.py", "b = 1", "b = 2"), slow]})
    monkeypatch.setenv("KCODE_HOME", str(tmp_path / "home"))
    command = [sys.executable, "-m", "kcode", "-p", "go", "-m", f"scripted:{script}", "--output-format", "stream-json"]
    with subprocess.Popen(command, cwd=project.workspace, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            said = json.loads(line)
            if said.get("subtype") == "agent" and said["steps"] == 2:
                break
        running.kill()
    assert project.clones()

    async def scene() -> None:
        project.write([step(task("QUICK")), END], {"QUICK": [{"text": "quick"}]})
        sessions = Sessions(Settings(), project.workspace, project.paths, "auto")
        session = await sessions.open("", f"scripted:{script}", None)
        try:
            (cut,) = session.messages[-1].results
            assert (cut.name, cut.is_error) == ("task", True)
            assert results(await events_of(session, "again")) == ["quick\n\n[it changed no files]"]
            assert [state.agent for state in session.swarm.agents] == [2] if session.swarm is not None else False
        finally:
            await session.close()
        deadline = time.monotonic() + 60
        while project.clones():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    asyncio.run(scene())
    assert (project.workspace / "b.py").read_text() == "b = 1\n"


def test_hooks_hold_for_the_task_and_for_what_a_sub_agent_does(project: Project) -> None:
    async def scene() -> None:
        beside: dict[str, list[Json]] = {"EDIT": [*edit("b.py", "b = 1", "b = 2"), {"text": "could not"}]}
        for tools, wanted in (("str_replace", "could not\n\n[it changed no files]"), ("task", "not here")):
            project.paths.config_file.parent.mkdir(parents=True, exist_ok=True)
            hook = f"[[hooks.before_tool]]\ntools = '{tools}'\ncommand = 'echo not here >&2; exit 2'\n"
            project.paths.config_file.write_text(hook)
            async with project.open([step(task("EDIT")), END], beside) as session:
                (text,) = results(await events_of(session, "go"))
                assert wanted in text
            assert (project.workspace / "b.py").read_text() == "b = 1\n"

    asyncio.run(scene())


def test_slash_agents_shows_them_and_stops_one(project: Project, tmp_path: Path) -> None:
    async def scene() -> None:
        beside: dict[str, list[Json]] = {"SLOW": [{"text": "never said", "delay_s": 600}]}
        script = project.write([step(task("SLOW")), END], beside)
        sessions = Sessions(Settings(model=f"scripted:{script}"), project.workspace, project.paths, "auto")
        app = KcodeApp(Launch(str(project.workspace)), sessions, None, tmp_path / "state")
        async with app.run_test(size=(110, 30)) as pilot:
            await until(app, "scripted │")
            await enter(pilot, "/agents")
            await until(app, "no sub-agent was sent in this turn")
            await enter(pilot, "go")
            await until(app, "agent 1 · do SLOW · working")
            await enter(pilot, "/agents")
            await until(app, "Sub-agents: Enter stops one")
            await pilot.press("enter")
            await until(app, "agent 1 is being stopped")
            await until(app, "all done")

    asyncio.run(scene())


@pytest.mark.slow
def test_four_work_at_once_and_fifteen_in_a_turn(project: Project) -> None:
    async def scene() -> None:
        names = [f"PART{number:02}" for number in range(16)]
        beside: dict[str, list[Json]] = {name: [step(call("read", path="b.py")), {"text": f"said {name}"}] for name in names}
        async with project.open([step(*map(task, names)), END], beside) as session:
            events = await events_of(session, "go")
            texts = results(events)
            assert [text.split("\n")[0] for text in texts[:15]] == [f"said {name}" for name in names[:15]]
            assert texts[15].startswith("This turn has had 15 sub-agents")

    asyncio.run(scene())


@pytest.mark.slow
def test_where_nothing_can_be_copied_a_sub_agent_reads(project: Project) -> None:
    async def scene() -> None:
        beside: dict[str, list[Json]] = {"EDIT": [*edit("b.py", "b = 1", "b = 2"), {"text": "could not"}]}
        settings = Settings(sandbox_backend="landlock")
        async with project.open([step(task("EDIT")), END], beside, settings) as session:
            assert results(await events_of(session, "go")) == ["could not\n\n[it changed no files]"]
            assert "cannot be copied here" in conversation(session, 1)[2].text
            assert (project.workspace / "b.py").read_text() == "b = 1\n"

    asyncio.run(scene())
