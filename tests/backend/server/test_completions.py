"""The HTTP contract, asked of a real engine process over its socket."""

from __future__ import annotations

import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.backend.server.conftest import EngineServer

SCHEMA = {
    "type": "object",
    "properties": {"mode": {"enum": ["fast", "slow"]}, "deep": {"type": "boolean"}},
    "required": ["mode", "deep"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA}} for name in ("scan", "list-all")
]
ARGUMENTS = re.compile(r'\{"mode": "(fast|slow)", "deep": (true|false)\}')


def content(chunks: list[dict]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def user(text: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": text}]


def test_model_list_names_limit_fingerprint_and_family(engine: EngineServer) -> None:
    with engine.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert client.get("/health").json() == {"status": "ok", "model": "tiny"}
    assert (model["id"], model["kcode"]["context_limit"], model["kcode"]["family"]) == ("tiny", 32768, "qwen")
    assert re.fullmatch("[0-9a-f]{32}", model["kcode"]["fingerprint"])


def test_stream_and_whole_answer_say_the_same(engine: EngineServer) -> None:
    whole = engine.ask("hello world")
    chunks = engine.stream({"messages": user("hello world"), "temperature": 0, "max_tokens": 12})
    assert content(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert whole["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["kcode"]["token_ids"] == whole["kcode"]["token_ids"]
    assert whole["usage"]["completion_tokens"] == len(whole["kcode"]["token_ids"]) == 12
    assert set(whole["kcode"]["speculation"]) == set(chunks[-1]["kcode"]["speculation"]) == {"drafted", "accepted"}
    progress = [chunk["kcode"]["prefill"] for chunk in chunks if "prefill" in chunk.get("kcode", {})]
    total = whole["usage"]["prompt_tokens"]
    assert progress[-1] == {"done": total, "total": total, "cached": total - 1}


def test_next_turn_computes_only_new_tokens(engine: EngineServer) -> None:
    messages = user("the first turn, which nobody asked before")
    first = engine.ask("", messages=messages)
    answer = {**first["choices"][0]["message"], "kcode": first["kcode"]}
    before = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    second = engine.ask("", messages=[*messages, answer, *user("and more")])
    # All but the last sampled token, after which nothing was computed.
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == before - 1
    again = engine.ask("", messages=[*messages, answer, *user("and else")])
    shared = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert before - 1 < shared < again["usage"]["prompt_tokens"]
    count = engine_count(engine, [*messages, answer, *user("and more")])
    assert count == second["usage"]["prompt_tokens"]


def engine_count(engine: EngineServer, messages: list[dict[str, object]]) -> int:
    with engine.client() as client:
        return client.post("/v1/kcode/tokenize", json={"messages": messages}).json()["count"]


def test_texts_are_counted_each_by_itself(engine: EngineServer) -> None:
    with engine.client() as client:
        texts = ["", "hello", "hello world, <|im_end|>"]
        answer = client.post("/v1/kcode/tokenize", json={"texts": texts}).json()
        apart = [client.post("/v1/kcode/tokenize", json={"texts": [text]}).json()["count"] for text in texts]
    assert answer == {"count": sum(apart), "counts": apart}
    assert apart[0] == 0 < apart[1] < apart[2]


def test_ids_of_another_model_are_not_used(engine: EngineServer) -> None:
    answer = {"role": "assistant", "content": "hello", "kcode": {"token_ids": [1, 2, 3], "fingerprint": "0" * 32}}
    plain = {"role": "assistant", "content": "hello"}
    assert engine_count(engine, [*user("a"), answer]) == engine_count(engine, [*user("a"), plain])


def test_streams_together_say_what_they_say_alone(engine: EngineServer) -> None:
    texts = [f"question {n} hello world" for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: engine.ask(text, max_tokens=40)["kcode"]["token_ids"], texts))
    assert together == [engine.ask(text, max_tokens=40)["kcode"]["token_ids"] for text in texts]


def test_same_seed_same_tokens(engine: EngineServer) -> None:
    answers = [engine.ask("dice", temperature=1.5, top_k=0, top_p=1, seed=seed)["kcode"]["token_ids"] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"scan", "list-all"}), ({"type": "function", "function": {"name": "list-all"}}, {"list-all"})],
)
def test_forced_call_is_valid_whatever_the_model_wants(engine: EngineServer, choice: object, names: set[str]) -> None:
    for seed in range(3):
        fields = {
            "tools": TOOLS,
            "tool_choice": choice,
            "temperature": 2.0,
            "seed": seed,
            "max_tokens": 150,
            "parallel_tool_calls": False,
        }
        answer = engine.ask("go", **fields)
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] in names
        assert ARGUMENTS.fullmatch(call["function"]["arguments"])
        assert answer["choices"][0]["finish_reason"] == "tool_calls"
        assert answer["choices"][0]["message"]["content"] is None


def test_call_ids_never_repeat_in_a_conversation(engine: EngineServer) -> None:
    fields = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 150, "parallel_tool_calls": False}
    messages = user("go")
    ids: list[str] = []
    for _ in range(3):
        answer = engine.ask("", messages=messages, **fields)
        message = answer["choices"][0]["message"]
        ids.append(message["tool_calls"][0]["id"])
        result = {"role": "tool", "tool_call_id": ids[-1], "content": "done"}
        messages = [*messages, {**message, "kcode": answer["kcode"]}, result]
    assert ids == ["call_0", "call_1", "call_2"]


def test_streamed_call_has_index_id_and_name_first(engine: EngineServer) -> None:
    fields = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 150, "parallel_tool_calls": False, "temperature": 0}
    chunks = engine.stream({"messages": user("go"), **fields})
    deltas = [call for chunk in chunks for choice in chunk["choices"] for call in choice["delta"].get("tool_calls", [])]
    assert (deltas[0]["index"], deltas[0]["id"], deltas[0]["function"]["name"]) == (0, "call_0", deltas[0]["function"]["name"])
    assert ARGUMENTS.fullmatch("".join(delta["function"]["arguments"] for delta in deltas))
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_prefix_opens_a_call_that_is_then_bound(engine: EngineServer) -> None:
    prefix = '<tool_call>\n{"name": "scan", "arguments": {"mode": "slow", "deep": '
    answer = engine.ask("go", tools=TOOLS, max_tokens=150, parallel_tool_calls=False, kcode={"prefix": prefix})
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["mode"] == "slow"
    assert ARGUMENTS.fullmatch(call["function"]["arguments"])


def test_tool_choice_none_never_calls(engine: EngineServer) -> None:
    answer = engine.ask("go", tools=TOOLS, tool_choice="none", temperature=2.0, seed=3, max_tokens=100)
    assert "tool_calls" not in answer["choices"][0]["message"]


def test_grammar_binds_the_whole_answer(engine: EngineServer) -> None:
    for seed in range(3):
        fields = {
            "temperature": 2.0,
            "seed": seed,
            "max_tokens": 100,
            "kcode": {"grammar": 'start: ("yes" | "no") " " /[0-9]{3}/'},
        }
        answer = engine.ask("go", **fields)
        assert re.fullmatch(r"(yes|no) \d{3}", answer["choices"][0]["message"]["content"])
        assert answer["choices"][0]["finish_reason"] == "stop"


def test_prefix_is_part_of_the_answer_and_of_the_grammar(engine: EngineServer) -> None:
    grammar = 'start: "yes, " /[ab]{4}/'
    answer = engine.ask("go", kcode={"grammar": grammar, "prefix": "yes, a"})
    assert re.fullmatch("yes, a[ab]{3}", answer["choices"][0]["message"]["content"])
    free = engine.ask("go", kcode={"prefix": "hello"}, max_tokens=8)
    assert free["choices"][0]["message"]["content"].startswith("hello")


def test_stop_text_cuts_the_answer(engine: EngineServer) -> None:
    answer = engine.ask("go", kcode={"grammar": 'start: "one two three"'}, stop=["two"])
    assert answer["choices"][0]["message"]["content"] == "one "
    assert answer["choices"][0]["finish_reason"] == "stop"


REFUSED = [
    ("temperature", {"temperature": "hot"}, 400, "temperature"),
    ("role", {"messages": [{"role": "robot", "content": "x"}]}, 400, '"robot"'),
    ("no messages", {"messages": []}, 400, "messages is empty"),
    ("own field", {"kcode": {"gramar": "x"}}, 400, "kcode.gramar"),
    ("grammar", {"kcode": {"grammar": "start: nothing"}}, 400, 'unknown name: "nothing"'),
    ("prefix", {"kcode": {"grammar": 'start: "yes"', "prefix": "no"}}, 400, "left its grammar"),
    ("too many answers", {"n": 129}, 400, "n:"),
    ("unknown tool", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "rm"}}}, 400, "'rm'"),
    ("no tools", {"tool_choice": "required"}, 400, "needs tools"),
    ("image", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image_url: it has no url"),
    ("ids", {"messages": [{"role": "assistant", "kcode": {"token_ids": [-1], "fingerprint": "x"}}]}, 400, "token_ids.0"),
    ("too long", {"messages": [{"role": "user", "content": "x " * 20000}]}, 413, "the context holds 32768"),
]


@pytest.mark.parametrize(("fields", "status", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_wrong_request_is_refused_by_name(engine: EngineServer, fields: dict[str, object], status: int, text: str) -> None:
    response = engine.post({"messages": user("x"), **fields})
    assert (response.status_code, sorted(response.json()["error"])) == (status, ["code", "message", "param", "type"])
    assert text in response.json()["error"]["message"]
    assert "\n" not in response.json()["error"]["message"] or "grammar" in fields.get("kcode", {})


def test_broken_bodies_and_routes(engine: EngineServer) -> None:
    with engine.client() as client:
        for body in (b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000):
            response = client.post("/v1/chat/completions", content=body)
            assert response.status_code == 400
            assert "body" in response.json()["error"]["message"]
        assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
        refused = client.get("/v1/models", headers={"Origin": "http://evil.example"})
        assert refused.status_code == 403


@pytest.mark.parametrize("stream", [True, False])
def test_closing_the_connection_cancels_a_long_prefill(engine: EngineServer, stream: bool) -> None:
    before = engine.metric("kcode_prompt_tokens_computed_total")
    body = json.dumps({"messages": user(f"{stream} " * 5000), "stream": stream, "max_tokens": 5}).encode()
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.connect(str(engine.socket))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    raw.sendall(head.encode() + body)
    deadline = time.monotonic() + 20
    while engine.metric("kcode_prompt_tokens_computed_total") == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    raw.close()
    engine.wait_metric("kcode_blocks_used", 0)
    assert engine.metric("kcode_prompt_tokens_computed_total") - before < 25_000
    # What was computed before the cancel is found again.
    assert engine.metric("kcode_blocks_cached") > 0
