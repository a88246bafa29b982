"""The free loop, through a session: real tools, real shell, scripted answers."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path

import pytest

from kcode.approval import Question, Reply
from kcode.events import CallFinished, CallOutput, CallStarted, Event, Notice, StepFinished, TextPiece, TurnFinished, TurnStarted
from kcode.settings import Settings
from tests.core.conftest import Open, call, collect, ending, interrupted_at

DIRECT = Settings(sandbox="danger-full-access", approval_mode="auto")


def results(events: list[Event]) -> list[str]:
    return [event.result.text for event in events if isinstance(event, CallFinished)]


async def test_turn_reads_edits_and_finishes(open_session: Open, workspace: Path) -> None:
    session = await open_session(
        {"text": "I look.", "calls": [call("read", path="calc.py")]},
        {"calls": [call("str_replace", path="calc.py", old="a - b", new="a + b")]},
        {"calls": [call("finish", summary="add added")]},
    )
    events = await collect(session, "fix add")
    assert isinstance(events[0], TurnStarted)
    assert (workspace / "calc.py").read_text() == "def add(a, b):\n    return a + b\n"
    end = ending(events)
    assert (end.status, end.result, end.steps) == ("finished", "add added", 3)
    assert [message.role for message in session.messages] == ["system", "user", *["assistant", "tool"] * 3]


async def test_answer_without_a_call_ends_the_turn(open_session: Open) -> None:
    session = await open_session({"text": "It is fine as it is."})
    events = await collect(session, "is it fine?")
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == "It is fine as it is."
    assert ending(events).result == "It is fine as it is."


async def test_live_output_comes_between_start_and_end_of_its_call(open_session: Open) -> None:
    session = await open_session({"calls": [call("bash", command="echo one; sleep 0.3; echo two")]}, {"text": "done"})
    events = await collect(session, "run it")
    kinds = [type(event) for event in events]
    first, last = kinds.index(CallStarted), kinds.index(CallFinished)
    assert set(kinds[first + 1 : last]) == {CallOutput}
    assert results(events) == ["one\ntwo"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("{bad", "not valid JSON"),
        ('["calc.py"]', "must be one JSON object, not list"),
        ('{"path": 3}', "path: "),
        ('{"file": "calc.py"}', "path: Field required"),
    ],
)
async def test_wrong_arguments_are_a_result_that_names_them(open_session: Open, arguments: str, told: str) -> None:
    session = await open_session({"calls": [{"name": "read", "arguments": arguments}]}, {"text": "oh"})
    events = await collect(session, "go")
    assert told in results(events)[0]
    assert ending(events).status == "finished"


async def test_arguments_sent_as_json_in_a_string_are_read(open_session: Open) -> None:
    session = await open_session({"calls": [{"name": "read", "arguments": '"{\\"path\\": \\"calc.py\\"}"'}]}, {"text": "ok"})
    assert "return a - b" in results(await collect(session, "go"))[0]


async def test_unknown_tool_gets_the_list_and_wrong_case_is_repaired(open_session: Open) -> None:
    session = await open_session(
        {"calls": [call("open_file", path="calc.py"), call("Read", path="calc.py"), call("functions.read", path="calc.py")]},
        {"text": "ok"},
    )
    unknown, repaired, prefixed = results(await collect(session, "go"))
    assert unknown.startswith("There is no tool 'open_file'. The tools are: read, grep,")
    assert "return a - b" in repaired
    assert "return a - b" in prefixed


async def test_identical_calls_are_hinted_redirected_and_stopped(open_session: Open) -> None:
    session = await open_session(*[{"calls": [call("read", path="missing.py")]}] * 9)
    events = await collect(session, "go")
    texts = results(events)
    assert [number for number, text in enumerate(texts, 1) if "[You have made this" in text] == [3]
    assert [number for number, text in enumerate(texts, 1) if "Do something else" in text] == [5, 6, 7, 8]
    end = ending(events)
    assert (end.status, end.steps) == ("loop", 8)
    assert "read was called 8 times" in end.reason


async def test_the_same_failing_test_after_edits_is_no_loop(open_session: Open) -> None:
    replies: list[dict[str, object]] = []
    for number in range(9):
        replies.append({"calls": [call("create", path=f"note{number}.txt", content="x\n"), call("read", path="missing.py")]})
    session = await open_session(*replies, {"text": "done"})
    assert ending(await collect(session, "go")).status == "finished"


async def test_step_limit_stops_with_the_number(open_session: Open) -> None:
    replies = [{"calls": [call("bash", command=f"echo {number}")]} for number in range(5)]
    session = await open_session(*replies, settings=Settings(sandbox="danger-full-access", approval_mode="auto", max_turns=3))
    end = ending(await collect(session, "go"))
    assert (end.status, end.steps) == ("limit", 3)
    assert "the limit is 3" in end.reason


async def test_token_limit_counts_what_the_model_wrote(open_session: Open) -> None:
    reply = {"calls": [call("bash", command="true")], "usage": {"prompt": 10, "completion": 60}}
    settings = Settings(sandbox="danger-full-access", approval_mode="auto", max_tokens=100)
    session = await open_session(reply, reply, reply, settings=settings)
    end = ending(await collect(session, "go"))
    assert (end.status, end.steps, end.usage.completion_tokens) == ("limit", 2, 120)


async def test_time_limit_ends_a_running_command(open_session: Open) -> None:
    settings = Settings(sandbox="danger-full-access", approval_mode="auto", time_limit_s=1.5)
    session = await open_session({"calls": [call("bash", command="sleep 60")]}, settings=settings)
    end = ending(await collect(session, "go"))
    assert (end.status, end.reason) == ("limit", "the turn ran 1.5 s, its time limit (--time-limit)")
    assert end.duration_s < 10
    assert session.messages[-1].results[0].is_error


async def test_full_context_stops_with_the_numbers(open_session: Open) -> None:
    session = await open_session({"text": "read"}, context_limit=2000)
    end = ending(await collect(session, "read this: " + "a line of words\n" * 400))
    assert (end.status, end.steps) == ("limit", 0)
    assert "and the context 2000" in end.reason


async def test_cut_off_answer_is_continued_and_given_up_after_three(open_session: Open) -> None:
    cut = {"text": "and so on", "finish": "length"}
    session = await open_session(cut, {"text": "the end"})
    assert ending(await collect(session, "tell")).result == "the end"
    assert "cut off" in session.messages[3].text
    endless = await open_session(cut, cut, cut, cut)
    assert ending(await collect(endless, "tell")).status == "limit"


async def test_cut_off_call_says_so(open_session: Open) -> None:
    reply = {"calls": [{"name": "create", "arguments": '{"path": "a.txt", "content": "long'}], "finish": "length"}
    session = await open_session(reply, {"text": "ok"})
    assert "was cut off" in results(await collect(session, "go"))[0]


async def test_empty_answers_are_asked_again_then_an_error(open_session: Open) -> None:
    session = await open_session({}, {}, {})
    end = ending(await collect(session, "go"))
    assert (end.status, end.steps) == ("error", 3)


async def test_failing_model_ends_the_turn_and_the_next_one_works(open_session: Open) -> None:
    dies = {"text": "half an ans", "dies": True}
    session = await open_session(dies, dies, {"text": "whole"})
    end = ending(await collect(session, "go"))
    assert end.status == "error"
    assert "the engine ended while it was answering" in end.reason
    assert ending(await collect(session, "again")).result == "whole"


async def test_answer_that_breaks_off_is_asked_for_again_and_no_call_runs_twice(open_session: Open, workspace: Path) -> None:
    runs = {"calls": [call("bash", command="echo once >> log.txt")]}
    session = await open_session(runs, runs | {"text": "half", "dies": True}, {"text": "whole"})
    events = await collect(session, "go")
    assert (ending(events).status, ending(events).result) == ("finished", "whole")
    assert (workspace / "log.txt").read_text() == "once\n"
    assert [event.level for event in events if isinstance(event, Notice)] == ["warning"]
    assert [message.role for message in session.messages] == ["system", "user", "assistant", "tool", "assistant"]


async def test_interrupt_keeps_the_text_and_closes_every_call(open_session: Open) -> None:
    session = await open_session({"text": "Wait.", "calls": [call("bash", command="sleep 60"), call("read", path="calc.py")]})
    events = await interrupted_at(session, CallStarted)
    assert ending(events).status == "interrupted"
    assert [result.is_error for result in session.messages[-1].results] == [True, True]
    assert len(results(events)) == 2


async def test_interrupt_while_streaming_records_the_piece(open_session: Open) -> None:
    session = await open_session({"text": "one two three four five six", "piece_delay_s": 0.05}, {"text": "more"})
    async with aclosing(session.submit("count")) as stream:
        async for event in stream:
            if isinstance(event, TextPiece) and "three" in event.text:
                session.interrupt()
    said = session.messages[-1]
    assert said.role == "assistant"
    assert said.text.startswith("one two three")
    assert ending(await collect(session, "go on")).result == "more"


async def test_a_turn_interrupted_before_its_first_step_ends_as_any_other(open_session: Open) -> None:
    session = await open_session({"text": "never said"}, {"text": "said"})
    events = await interrupted_at(session, TurnStarted)
    assert (ending(events).status, ending(events).steps) == ("interrupted", 0)
    assert ending(await collect(session, "go on")).status == "finished"


async def test_closing_the_stream_before_the_first_step_ends_the_turn(open_session: Open) -> None:
    session = await open_session({"text": "said"})
    stream = session.submit("go")
    assert isinstance(await anext(stream), TurnStarted)
    await stream.aclose()
    assert not session.is_busy
    assert ending(await collect(session, "go on")).result == "said"


async def test_closing_the_stream_interrupts_the_turn(open_session: Open) -> None:
    session = await open_session({"calls": [call("bash", command="sleep 60")]})
    stream = session.submit("go")
    async for event in stream:
        if isinstance(event, CallStarted):
            break
    await stream.aclose()
    assert not session.is_busy
    assert session.messages[-1].results[0].is_error


async def test_steering_is_read_after_the_running_step(open_session: Open) -> None:
    session = await open_session({"calls": [call("bash", command="sleep 0.2")]}, {"text": "as you say"})
    assert session.steer("nobody listens") is False
    async with aclosing(session.submit("go")) as stream:
        async for event in stream:
            if isinstance(event, CallStarted):
                assert session.steer("use another way")
    assert [message.role for message in session.messages[-4:]] == ["assistant", "tool", "user", "assistant"]
    assert session.messages[-2].text == "use another way"


async def test_plan_mode_only_reads(open_session: Open, workspace: Path) -> None:
    session = await open_session(
        {"calls": [call("read", path="calc.py"), call("create", path="new.txt", content="x"), call("bash", command="touch b")]},
        {"text": "planned"},
        settings=Settings(sandbox="danger-full-access", approval_mode="plan"),
    )
    read, create, bash = results(await collect(session, "plan it"))
    assert "return a - b" in read
    assert "in plan mode only reading is allowed" in create
    assert "in plan mode only reading is allowed" in bash
    assert os.listdir(workspace) == ["calc.py"]


async def test_ask_mode_asks_once_per_tool_when_told_always(open_session: Open) -> None:
    asked: list[str] = []

    async def answer(question: Question) -> Reply:
        asked.append(question.summary)
        return Reply("allow-always") if "one" in question.summary else Reply("deny", "not now")

    commands = [call("bash", command="echo one"), call("bash", command="echo two"), call("create", path="c.txt", content="x")]
    session = await open_session(
        {"calls": commands}, {"text": "ok"}, ask=answer, settings=Settings(sandbox="danger-full-access", approval_mode="ask")
    )
    one, two, denied = results(await collect(session, "go"))
    assert (one, two) == ("one", "two")
    assert "The user said: not now" in denied
    assert len(asked) == 2


async def test_the_time_a_person_takes_is_not_the_tools(open_session: Open) -> None:
    async def answer(question: Question) -> Reply:
        await asyncio.sleep(3 if question.call.name == "bash" else 0.1)
        return Reply("allow" if question.call.name == "bash" else "deny")

    commands = [call("bash", command="true"), call("create", path="c.txt", content="x")]
    session = await open_session(
        {"calls": commands}, {"text": "ok"}, ask=answer, settings=Settings(sandbox="danger-full-access", approval_mode="ask")
    )
    allowed, denied = [event.duration_s for event in await collect(session, "go") if isinstance(event, CallFinished)]
    assert 0 < allowed < 3
    assert denied == 0


async def test_two_turns_at_once_are_refused(open_session: Open) -> None:
    session = await open_session({"text": "one two", "piece_delay_s": 0.1})
    first = asyncio.create_task(collect(session, "a"))
    await asyncio.sleep(0.05)
    with pytest.raises(AssertionError, match="a turn is running"):
        await collect(session, "b")
    assert isinstance((await first)[-1], TurnFinished)


async def test_messages_only_grow_from_step_to_step(open_session: Open) -> None:
    session = await open_session(
        {"text": "a", "thinking": "hm", "calls": [call("read", path="calc.py"), call("bash", command="echo é")]},
        {"calls": [call("nothing")], "finish": "length"},
        {"text": "b"},
    )
    seen = [session.messages]
    async with aclosing(session.submit("go")) as stream:
        async for event in stream:
            if isinstance(event, StepFinished):
                seen.append(session.messages)
    seen.append(session.messages)
    for earlier, later in pairwise(seen):
        assert later[: len(earlier)] == earlier
    assert len(seen) == 5
