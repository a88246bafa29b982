"""What clients of the OpenAI API expect beyond one plain answer, asked of a real engine process over its socket."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from tests.backend.server.conftest import EngineServer

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Zoë"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
EDIT = {
    "type": "function",
    "function": {
        "name": "edit",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "old": {"type": "string"}},
            "required": ["path", "old"],
            "additionalProperties": False,
        },
    },
}


def user(text: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": text}]


def post(engine: EngineServer, path: str, **body: object) -> httpx.Response:
    with engine.client() as client:
        return client.post(path, json=body)


def ask(engine: EngineServer, path: str, **body: object) -> dict:
    response = post(engine, path, **body)
    assert response.status_code == 200, response.text
    return response.json()


def lines_of(engine: EngineServer, path: str, **body: object) -> list[str]:
    """The data lines of a stream as a client that knows the OpenAI API alone asks for it; each line has to be UTF-8 by itself."""
    with engine.client() as client, client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        raw = b"".join(response.iter_bytes())
    events = [line.decode() for line in raw.split(b"\n\n") if line and not line.startswith(b":")]
    assert events[-1] == "data: [DONE]"
    return [event.removeprefix("data: ") for event in events[:-1]]


def stream(engine: EngineServer, path: str, **body: object) -> list[dict]:
    return [json.loads(line) for line in lines_of(engine, path, **body)]


def test_characters_of_several_tokens_arrive_whole(engine: EngineServer) -> None:
    # The tiny vocabulary has single bytes: an umlaut takes two tokens, an emoji four.
    said = "wörld 🙂🙂 ü"
    grammar = {"grammar": f"start: {json.dumps(said, ensure_ascii=False)}"}
    chunks = stream(engine, CHAT, messages=user("go"), max_tokens=60, kcode=grammar)
    pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(pieces) == said
    # Random bytes of a hot model are no characters; what is streamed is what is said as a whole.
    body = {"prompt": "go", "temperature": 3.0, "seed": 5, "max_tokens": 60}
    texts = [chunk["choices"][0]["text"] for chunk in stream(engine, TEXT, **body)]
    assert "".join(texts) == ask(engine, TEXT, **body)["choices"][0]["text"]


def test_plain_clients_get_choices_in_every_chunk_and_usage_when_they_ask(engine: EngineServer) -> None:
    body = {"messages": user("hello"), "max_tokens": 5, "temperature": 0}
    plain = stream(engine, CHAT, **body)
    assert all(len(chunk["choices"]) == 1 for chunk in plain)
    assert all("usage" not in chunk for chunk in plain)
    counted = stream(engine, CHAT, **body, stream_options={"include_usage": True})
    assert [len(chunk["choices"]) for chunk in counted] == [1] * (len(counted) - 1) + [0]
    said = ask(engine, CHAT, **body)["usage"]["completion_tokens"]
    assert counted[-1]["usage"]["completion_tokens"] == said > 0
    # Without a template a random model may end what it says at any token: as long as the whole answer, not as long as it may be.
    body = {"prompt": "hello", "max_tokens": 5, "temperature": 0}
    texts = stream(engine, TEXT, **body, stream_options={"include_usage": True})
    assert texts[-1]["usage"]["completion_tokens"] == ask(engine, TEXT, **body)["usage"]["completion_tokens"] > 0
    assert texts[-1]["choices"] == []


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_several_answers_share_the_prompt_and_interleave(engine: EngineServer, path: str) -> None:
    long = f"{path} and a prompt of some length, which is computed once for all of the answers to it " * 4
    prompt = {"messages": user(long)} if path == CHAT else {"prompt": long}
    before = engine.metric("kcode_prompt_tokens_computed_total")
    body = {**prompt, "n": 4, "seed": 3, "temperature": 2.0, "max_tokens": 20}
    whole = ask(engine, path, **body)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    said = [choice["message"]["content"] if path == CHAT else choice["text"] for choice in whole["choices"]]
    assert len(set(said)) == 4
    assert whole["usage"]["completion_tokens"] == sum(len(choice["kcode"]["token_ids"]) for choice in whole["choices"]) <= 80
    # Each further answer computes at most what the last block of the prompt has. A block more may come from an earlier request,
    # whose last tokens are counted after it was answered.
    computed = engine.metric("kcode_prompt_tokens_computed_total") - before
    assert whole["usage"]["prompt_tokens"] <= computed <= whole["usage"]["prompt_tokens"] + 4 * 32
    streamed = ["", "", "", ""]
    order: list[int] = []
    for chunk in stream(engine, path, **body):
        (choice,) = chunk["choices"]
        streamed[choice["index"]] += (choice["delta"].get("content") or "") if path == CHAT else choice["text"]
        order.append(choice["index"])
    assert streamed == said
    assert order != sorted(order)


def test_several_prompts_have_answers_of_their_own(engine: EngineServer) -> None:
    both = ask(engine, TEXT, prompt=["hello", "world"], n=2, temperature=0, max_tokens=6)
    texts = [choice["text"] for choice in both["choices"]]
    single = [ask(engine, TEXT, prompt=text, temperature=0, max_tokens=6)["choices"][0]["text"] for text in ("hello", "world")]
    assert texts == [single[0], single[0], single[1], single[1]]


def test_logprobs_are_those_that_a_later_reading_finds(engine: EngineServer) -> None:
    answer = ask(engine, TEXT, prompt="hello world", temperature=1.0, seed=1, max_tokens=12, logprobs=3)
    own = answer["choices"][0]["logprobs"]
    assert {len(values) for values in own.values()} == {len(answer["kcode"]["token_ids"])}
    # The very tokens of prompt and answer, scored as a prompt.
    first = ask(engine, TEXT, prompt="xhello world", max_tokens=0, echo=True, logprobs=0)["kcode"]["scores"]
    ids = [entry["id"] for entry in first] + answer["kcode"]["token_ids"]
    scored = ask(engine, TEXT, prompt=ids, max_tokens=0, echo=True, logprobs=3)["kcode"]["scores"][-12:]
    assert own["token_logprobs"] == pytest.approx([entry["logprob"] for entry in scored], abs=2e-3)
    for top, entry in zip(own["top_logprobs"], scored, strict=True):
        # Tokens that are no characters have one name together.
        assert all(min(abs(value - one["logprob"]) for one in entry["alternatives"]) < 2e-3 for value in top.values())


def test_logprobs_of_a_chat_come_with_its_text(engine: EngineServer) -> None:
    body = {"messages": user("hello"), "temperature": 0, "max_tokens": 10, "logprobs": True, "top_logprobs": 2}
    choice = ask(engine, CHAT, **body)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace") == choice["message"]["content"]
    for entry in entries:
        # Greedy: the token itself is the likeliest.
        assert entry["top_logprobs"][0] == {key: entry[key] for key in ("token", "logprob", "bytes")}
        assert len(entry["top_logprobs"]) == 2
    streamed = [chunk["choices"][0].get("logprobs") for chunk in stream(engine, CHAT, **body)]
    assert [entry for part in streamed if part for entry in part["content"]] == entries
    forced = ask(engine, CHAT, **{**body, "kcode": {"grammar": 'start: "one two"'}})["choices"][0]["logprobs"]["content"]
    assert {entry["logprob"] for entry in forced} == {0}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_stop_text_over_the_borders_of_chunks(engine: EngineServer, path: str) -> None:
    prompt = {"messages": user("hello")} if path == CHAT else {"prompt": "hello"}
    # A, B and C take turns, so that each character is a token.
    turns = {"logit_bias": {"65": 100, "66": 99.5, "67": 99}, "frequency_penalty": 2}
    body = {**prompt, **turns, "temperature": 0, "max_tokens": 40, "logprobs": True if path == CHAT else 0}
    whole = ask(engine, path, **body)["choices"][0]
    text = whole["message"]["content"] if path == CHAT else whole["text"]
    assert len(text) == 40
    stop = text[12:17]
    cut = text[: text.index(stop)]
    chunks = [chunk["choices"][0] for chunk in stream(engine, path, **body, stop=["never said", stop])]
    assert "".join((chunk["delta"].get("content") or "") if path == CHAT else chunk["text"] for chunk in chunks) == cut
    assert chunks[-1]["finish_reason"] == "stop"
    parts = [chunk["logprobs"] for chunk in chunks if chunk.get("logprobs")]
    tokens = (
        [entry["token"] for part in parts for entry in part["content"]]
        if path == CHAT
        else [token for part in parts for token in part["tokens"]]
    )
    assert "".join(tokens) == cut
    engine.wait_metric("kcode_blocks_used", 0)


def test_bias_and_penalties_reach_the_sampler(engine: EngineServer) -> None:
    body = {"prompt": "hello", "temperature": 0, "max_tokens": 8}
    first = ask(engine, TEXT, **body)["kcode"]["token_ids"][0]
    banned = ask(engine, TEXT, **body, logit_bias={str(first): -100})["kcode"]["token_ids"]
    assert first not in banned
    assert ask(engine, TEXT, **body, logit_bias={"65": 100})["kcode"]["token_ids"] == [65] * 8
    varied = ask(engine, TEXT, **body, logit_bias={"65": 100, "66": 99, "67": 98}, presence_penalty=2)["kcode"]["token_ids"]
    assert set(varied[:3]) == {65, 66, 67}


def test_answer_is_json_of_the_schema_whatever_the_model_wants(engine: EngineServer) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    for seed in range(3):
        fields = {"messages": user("go"), "temperature": 2.0, "seed": seed, "max_tokens": 200}
        choice = ask(engine, CHAT, **fields, response_format=schema)["choices"][0]
        person = json.loads(choice["message"]["content"])
        assert person["name"] in ("Ada", "Zoë")
        assert 0 <= person["age"] <= 99
        assert choice["finish_reason"] == "stop"
        either = ask(engine, CHAT, **fields, response_format=schema, tools=[EDIT], parallel_tool_calls=False)["choices"][0]
        calls = either["message"].get("tool_calls")
        assert calls or json.loads(either["message"]["content"])["name"] in ("Ada", "Zoë")
    some = ask(engine, CHAT, messages=user("go"), max_tokens=4, response_format={"type": "json_object"}, temperature=2.0)
    assert some["choices"][0]["message"]["content"].startswith("{")
    free = ask(engine, CHAT, messages=user("go"), max_tokens=4, response_format={"type": "text"})
    assert free["usage"]["completion_tokens"] == 4


def test_bound_arguments_are_what_exists(engine: EngineServer) -> None:
    text = "def f():\n    return 1\n\nprint(f())"
    bind = {"edit": {"path": {"enum": ["a.py", "b.py"]}, "old": {"lines_of": text}}}
    fields = {"tools": [EDIT], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200, "temperature": 2.0}
    for seed in range(4):
        answer = ask(engine, CHAT, messages=user("go"), seed=seed, kcode={"bind": bind}, **fields)
        arguments = json.loads(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
        assert arguments["path"] in ("a.py", "b.py")
        assert arguments["old"]
        assert arguments["old"] in text


FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "banana"}}}
REFUSED = [
    ("schema", {"response_format": FORMAT}, "response_format: its schema cannot be enforced: Invalid type: banana"),
    ("format", {"response_format": {"type": "xml"}}, "response_format"),
    ("both", {"response_format": {"type": "json_object"}, "kcode": {"grammar": 'start: "x"'}}, "give one of them"),
    ("tool schema", {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "banana"}}}]}, "tool x"),
    ("bound tool", {"kcode": {"bind": {"rm": {"x": {"enum": ["a"]}}}}}, "kcode.bind: 'rm' is not among the tools"),
    ("bound twice", {"kcode": {"bind": {"edit": {"old": {"enum": ["a"], "lines_of": "a"}}}}, "tools": [EDIT]}, "either enum or"),
    ("bound to nothing", {"kcode": {"bind": {"edit": {"old": {"enum": []}}}}, "tools": [EDIT]}, "kcode.bind.edit.old.enum"),
    ("alternatives", {"top_logprobs": 3}, "top_logprobs: it needs logprobs to be true"),
    ("old functions", {"functions": [{"name": "f"}]}, "functions: it is deprecated; use tools"),
    ("penalty", {"presence_penalty": 3}, "presence_penalty"),
    ("depth", {"metadata": json.loads("[" * 80 + "]" * 80)}, "nested deeper than 64"),
]


@pytest.mark.parametrize(("fields", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_met_is_refused_before_anything_is_computed(engine: EngineServer, fields: dict, text: str) -> None:
    before = engine.metric("kcode_prompt_tokens_computed_total")
    response = post(engine, CHAT, messages=user("x"), **fields)
    assert response.status_code == 400
    assert text in response.json()["error"]["message"]
    assert engine.metric("kcode_prompt_tokens_computed_total") == before


def test_fields_without_a_meaning_here_and_nulls_are_ignored(engine: EngineServer) -> None:
    nulls = dict.fromkeys(("stream", "stop", "n", "seed", "tools", "tool_choice", "logprobs", "max_tokens", "response_format"))
    unknown = {
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "reasoning_effort": "low",
        "service_tier": "auto",
        "model": "gpt",
    }
    answer = ask(engine, CHAT, messages=user("hello"), temperature=0, max_completion_tokens=3, **nulls, **unknown)
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("tiny", 3)
    # Half a surrogate pair is what is left of an emoji that somebody cut.
    with engine.client() as client:
        body = rb'{"messages": [{"role": "user", "content": "cut \ud83d"}], "max_tokens": 2, "stop": ["\ude42"]}'
        assert client.post(CHAT, content=body).status_code == 200


def test_models_are_found_by_name_and_methods_are_checked(engine: EngineServer) -> None:
    with engine.client() as client:
        assert client.get("/v1/models/tiny").json() == client.get("/v1/models").json()["data"][0]
        missing = client.get("/v1/models/none")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        wrong = client.get(CHAT)
        assert (wrong.status_code, wrong.headers["allow"], wrong.json()["error"]["code"]) == (405, "POST", "method_not_allowed")


def test_metrics_are_what_prometheus_reads(engine: EngineServer) -> None:
    def read() -> dict[tuple[str, str], float]:
        with engine.client() as client:
            response = client.get("/metrics")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = list(text_string_to_metric_families(response.text))
        assert all(family.documentation and family.type in ("counter", "gauge", "histogram") for family in families)
        return {(sample.name, ",".join(sample.labels.values())): sample.value for family in families for sample in family.samples}

    before = read()
    ask(engine, CHAT, messages=user("to be counted"), max_tokens=7, temperature=0, logit_bias={"65": 100})
    post(engine, CHAT, messages=user("x"), temperature=-1)
    post(engine, TEXT, prompt="")
    after = read()
    grown = {key: after[key] - before[key] for key in after if after[key] != before[key]}
    assert grown["kcode_requests_total", "chat,ok"] == 1
    assert grown["kcode_requests_total", "chat,refused"] == 1
    assert grown["kcode_requests_total", "completions,refused"] == 1
    assert grown["kcode_generated_tokens_total", ""] == 7
    assert grown["kcode_time_to_first_token_seconds_count", ""] == 1
    assert grown["kcode_step_seconds_count", ""] == grown["kcode_passes_total", ""]
    assert after["kcode_step_seconds_bucket", "+Inf"] == after["kcode_step_seconds_count", ""]
    states = [after[f"kcode_blocks_{state}", ""] for state in ("free", "cached", "used")]
    assert sum(states) == after["kcode_blocks", ""]
    assert (after["kcode_sequences_running", ""], after["kcode_sequences_waiting", ""]) == (0, 0)
    assert re.fullmatch(r"0\.\d+|\d+\.\d+", f"{after['kcode_busy_seconds_total', '']:.6f}")
