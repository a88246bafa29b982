"""The client for other people's servers, against a real one that misbehaves on order."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from kcode.errors import AnswerBroken, ModelError, StartError
from kcode.messages import Image, Message, Text, Thinking, ToolCall, ToolResult, system, tool, user
from kcode.model import CallDelta, Completed, ModelEvent, ModelRequest, Sampling, TextDelta, ThinkingDelta, ToolSpec, Usage
from kcode.models.http import HttpModel
from tests.fakes.openai_server import Hang, Refuse, Seen, Stream, data, delta, said, serving

REQUEST = ModelRequest((system("be brief"), user("hello")))


def client(seen: Seen, model: str = "m") -> HttpModel:
    return HttpModel(seen.url, model, "secret", "SOME_KEY", first_delay_s=0.01)


async def ask(seen: Seen, request: ModelRequest = REQUEST) -> list[ModelEvent]:
    model = client(seen)
    try:
        async with aclosing(model.stream(request)) as events:
            return [event async for event in events]
    finally:
        await model.close()


def completed(events: list[ModelEvent]) -> Completed:
    last = events[-1]
    assert isinstance(last, Completed)
    return last


async def test_keys_do_not_leave_and_the_first_is_told() -> None:
    key, told = "AKIA" + "QWERTYUIOPASDF23", list[str]()
    first = ModelRequest((user(f"use {key}"),))
    with serving(said("a"), said("b"), said("c")) as seen:
        for redaction in ("on", "auto"):
            model = HttpModel(seen.url, "m", "", "KEY", redaction=redaction, on_redacted=told.append)
            for messages in (first.messages, (*first.messages, user("and"))) if redaction == "on" else (first.messages,):
                async with aclosing(model.stream(ModelRequest(messages))) as events:
                    async for _ in events:
                        continue
            await model.close()
    sent = [str(body["messages"]) for body in seen.bodies]
    assert [key in text for text in sent] == [False, False, True], "a server on this machine gets what there is"
    assert sent[1].startswith(sent[0][:-1])
    assert (len(told), "AWS key" in told[0]) == (1, True)


async def test_answer_streams_with_usage() -> None:
    with serving(said("hi there")) as seen:
        events = await ask(seen)
    assert events[0] == TextDelta("hi there")
    assert completed(events) == Completed(Message("assistant", (Text("hi there"),)), "stop", Usage(12, 8, 3))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_reasoning_comes_under_either_name(name: str) -> None:
    with serving(Stream((delta(**{name: "hmm"}), delta(content="yes"), delta("stop")))) as seen:
        events = await ask(seen)
    assert events[:2] == [ThinkingDelta("hmm"), TextDelta("yes")]
    assert completed(events).message.thinking == "hmm"


def piece(index: int | None, name: str | None, arguments: str, call_id: str | None = None) -> str:
    return delta(tool_calls=[{"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}])


@pytest.mark.parametrize(
    ("pieces", "ids"),
    [
        ((piece(0, "read", '{"a"', "x"), piece(1, "grep", "", "y"), piece(0, None, ":1}"), piece(1, None, "{}")), ["x", "y"]),
        ((piece(0, "read", '{"a":1}', "x"), piece(0, "grep", "{}", "y")), ["x", "y"]),
        ((piece(None, "read", '{"a":1}', "x"), piece(None, "grep", "{}", "y")), ["x", "y"]),
        ((piece(0, "read", '{"a":1}'), piece(1, "grep", "{}")), ["functions.read:1", "functions.grep:2"]),
    ],
    ids=["interleaved", "index always 0", "no index", "no ids"],
)
async def test_calls_are_put_together(pieces: tuple[str, ...], ids: list[str]) -> None:
    earlier = Message("assistant", (ToolCall("functions.read:0", "read", "{}"),))
    request = ModelRequest((user("go"), earlier, tool(ToolResult("functions.read:0", "read", "text"))))
    with serving(Stream((*pieces, delta("stop"), "data: [DONE]"))) as seen:
        events = await ask(seen, request)
    answer = completed(events)
    assert answer.message.calls == (ToolCall(ids[0], "read", '{"a":1}'), ToolCall(ids[1], "grep", "{}"))
    assert answer.finish == "tool_calls"
    assert [event.name for event in events if isinstance(event, CallDelta) and event.name] == ["read", "grep"]


async def test_request_carries_everything() -> None:
    calls = (ToolCall("c1", "read", '{"path": "a"}'), ToolCall("c2", "read", "{broken"))
    request = ModelRequest(
        (
            system("s"),
            Message("user", (Text("see"), Image("image/png", "aGk="))),
            Message("assistant", (Thinking("t"), *calls)),
            tool(ToolResult("c1", "read", "one"), ToolResult("c2", "read", "two", is_error=True)),
        ),
        (ToolSpec("read", "Reads.", {"type": "object"}),),
        Sampling(temperature=0.5, top_p=0.9, seed=7, max_tokens=100),
        tool_choice="read",
        stop=("END",),
    )
    with serving(said("ok")) as seen:
        await ask(seen, request)
    function = {"name": "read", "arguments": '{"path": "a"}'}
    broken = {"name": "read", "arguments": '{"invalid_json": "{broken"}'}
    assert seen.bodies == [
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "s"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "see"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "t",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": function},
                        {"id": "c2", "type": "function", "function": broken},
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "one"},
                {"role": "tool", "tool_call_id": "c2", "content": "two"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "tools": [
                {"type": "function", "function": {"name": "read", "description": "Reads.", "parameters": {"type": "object"}}}
            ],
            "tool_choice": {"type": "function", "function": {"name": "read"}},
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 7,
            "max_tokens": 100,
            "stop": ["END"],
        }
    ]


@pytest.mark.parametrize(
    "trouble",
    [
        (Refuse(429, "", (("Retry-After", "0.02"),)),),
        (Refuse(500), Refuse(503, "busy")),
        (Hang(), Refuse(529)),
        (Stream((), cut=True),),
    ],
    ids=["429", "500 503", "dropped", "cut before the first token"],
)
async def test_passing_trouble_is_tried_again(trouble: tuple[Refuse | Hang | Stream, ...]) -> None:
    with serving(*trouble, said("at last")) as seen:
        assert completed(await ask(seen)).message.text == "at last"
        assert len(seen.bodies) == len(trouble) + 1


async def test_lasting_trouble_is_given_up_with_its_reason() -> None:
    with (
        serving(*[Refuse(503, '{"error": {"message": "overloaded"}}')] * 5) as seen,
        pytest.raises(ModelError, match=r"HTTP 503 \(overloaded\); gave up after 5 attempts"),
    ):
        await ask(seen)


async def test_retry_after_is_waited_for() -> None:
    with serving(Refuse(429, "", (("Retry-After", "0.3"),)), said("ok")) as seen:
        started = time.monotonic()
        await ask(seen)
    assert time.monotonic() - started >= 0.3


async def test_stream_cut_in_the_middle_is_an_error_and_not_tried_again() -> None:
    with serving(Stream((delta(content="half"),), cut=True), said("never")) as seen:
        with pytest.raises(AnswerBroken, match="broke in the middle of the answer"):
            await ask(seen)
        assert len(seen.bodies) == 1


async def test_stream_that_ends_without_a_finish_is_an_error() -> None:
    with serving(Stream((delta(content="half"),))) as seen, pytest.raises(ModelError, match="closed the stream in the middle"):
        await ask(seen)


async def test_garbage_is_quoted() -> None:
    with serving(Stream(("data: <html>oops</html>",))) as seen, pytest.raises(ModelError, match="no chunk: '<html>oops</html>'"):
        await ask(seen)


async def test_comments_and_unknown_lines_are_passed_over() -> None:
    stream = Stream((": ping", "event: x", delta(content="ok"), data(object="unknown", more=1), delta("stop")))
    with serving(stream) as seen:
        assert completed(await ask(seen)).message.text == "ok"


async def test_error_in_the_stream_is_told() -> None:
    with (
        serving(Stream((delta(content="a"), data(error={"message": "out of memory"})))) as seen,
        pytest.raises(ModelError, match="stopped the answer: out of memory"),
    ):
        await ask(seen)


async def test_refused_key_names_the_variable() -> None:
    with serving(Refuse(401, '{"error": {"message": "bad key"}}'), models=Refuse(401, "bad key")) as seen:
        with pytest.raises(ModelError, match=r"HTTP 401 \(bad key\); set the environment variable SOME_KEY"):
            await ask(seen)
        model = client(seen)
        with pytest.raises(StartError, match="SOME_KEY"):
            await model.start()
        await model.close()
        assert seen.keys == ["Bearer secret"]


async def test_unknown_model_lists_those_there_are() -> None:
    with (
        serving(Refuse(404, '{"error": "no such model"}'), models={"data": [{"id": "qwen"}, {"id": "kimi"}]}) as seen,
        pytest.raises(ModelError, match=r"no model 'm' \(HTTP 404: no such model\); the server has: qwen, kimi"),
    ):
        await ask(seen)


async def test_bad_request_is_told_at_once() -> None:
    with (
        serving(Refuse(400, '{"detail": "prompt too long: 9000 > 8192"}')) as seen,
        pytest.raises(ModelError, match="HTTP 400: prompt too long: 9000 > 8192"),
    ):
        await ask(seen)


async def test_slow_answer_is_waited_for() -> None:
    with serving(Stream((delta(content="slow"), delta("stop")), pause_s=0.4)) as seen:
        assert completed(await ask(seen)).message.text == "slow"


async def test_closing_the_stream_closes_the_connection() -> None:
    with serving(Stream(tuple(delta(content="x" * 5000) for _ in range(400)), pause_s=0.01)) as seen:
        model = client(seen)
        events = model.stream(REQUEST)
        await anext(events)
        await events.aclose()
        await model.close()
        for _ in range(600):
            if seen.behaviours:
                break
            await asyncio.sleep(0.05)
        assert seen.behaviours == [Hang()], "the server went on writing to nobody"


async def test_start_learns_name_and_context() -> None:
    with serving(models={"data": [{"id": "only", "max_model_len": 4096}]}) as seen:
        model = client(seen, model="")
        await model.start()
        assert (model.name, model.context_limit) == ("only", 4096)
        await model.close()


async def test_start_without_a_name_lists_the_choice() -> None:
    with serving(models={"data": [{"id": "a"}, {"id": "b"}]}) as seen:
        model = client(seen, model="")
        with pytest.raises(StartError, match=r"name a model with --model; .* has: a, b"):
            await model.start()
        await model.close()


async def test_server_that_is_not_there_is_said_before_anything_else() -> None:
    with serving() as seen:
        pass
    model = client(seen)
    with pytest.raises(StartError, match=r"cannot reach http://127.0.0.1:\d+/v1: .*is the server running\?"):
        await model.start()
    await model.close()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "", "http://"])
def test_wrong_address_is_quoted(url: str) -> None:
    with pytest.raises(StartError, match="is not an http"):
        HttpModel(url, "m", "", "K")


async def test_grammar_is_refused_rather_than_ignored() -> None:
    with serving() as seen, pytest.raises(ModelError, match="cannot bind an answer"):
        await ask(seen, ModelRequest((user("x"),), grammar="start: /a/"))
