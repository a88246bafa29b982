"""POST /v1/completions, asked of a real engine process over its socket: plain text continued and scored."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.backend.server.conftest import EngineServer

# The tiny vocabulary has hello, world and single bytes: an umlaut takes two tokens, an emoji four.
TEXT = "hello wörld 🙂 hello"


def post(engine: EngineServer, **body: object) -> httpx.Response:
    with engine.client() as client:
        return client.post("/v1/completions", json=body)


def complete(engine: EngineServer, prompt: object, **body: object) -> dict:
    response = post(engine, prompt=prompt, **{"temperature": 0, "max_tokens": 8, **body})
    assert response.status_code == 200, response.text
    return response.json()


def score(engine: EngineServer, prompt: object, start: int = 0, alternatives: int = 3) -> dict:
    return complete(engine, prompt, max_tokens=0, echo=True, logprobs=alternatives, kcode={"score_from": start})


def covered(text: str, scores: list[dict]) -> list[bytes]:
    data = text.encode()
    return [data[entry["start"] : entry["start"] + entry["bytes"]] for entry in scores]


def test_answer_has_the_shape_of_the_api(engine: EngineServer) -> None:
    answer = complete(engine, "hello world")
    (choice,) = answer["choices"]
    assert (answer["object"], answer["model"], answer["id"][:5]) == ("text_completion", "tiny", "cmpl-")
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert len(answer["kcode"]["token_ids"]) == answer["usage"]["completion_tokens"] == 8
    usage = answer["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]


def test_text_and_its_token_ids_are_the_same_prompt(engine: EngineServer) -> None:
    text = score(engine, TEXT)
    ids = [entry["id"] for entry in text["kcode"]["scores"]]
    # The first token has no score: its id is that of a text which begins like this one.
    first = score(engine, f"x{TEXT}")["kcode"]["scores"][0]["id"]
    tokens = score(engine, [first, *ids])
    assert tokens["choices"] == text["choices"]
    assert tokens["kcode"]["scores"] == text["kcode"]["scores"]
    assert complete(engine, [first, *ids])["kcode"]["token_ids"] == complete(engine, TEXT)["kcode"]["token_ids"]


def test_draft_changes_nothing_but_is_counted(engine: EngineServer) -> None:
    plain = complete(engine, TEXT, kcode={"speculate": False})
    assert plain["kcode"]["speculation"] == {"drafted": 0, "accepted": 0}
    drafted = complete(engine, TEXT, kcode={"draft": plain["choices"][0]["text"]})
    assert drafted["choices"] == plain["choices"]
    counts = drafted["kcode"]["speculation"]
    assert 0 <= counts["accepted"] <= counts["drafted"]


def test_echo_puts_the_prompt_before_the_answer(engine: EngineServer) -> None:
    plain = complete(engine, TEXT)["choices"][0]["text"]
    assert complete(engine, TEXT, echo=True)["choices"][0]["text"] == TEXT + plain
    assert complete(engine, TEXT, echo=True, max_tokens=0)["choices"][0]["text"] == TEXT


def test_scores_cover_the_text_byte_by_byte(engine: EngineServer) -> None:
    scores = score(engine, TEXT)["kcode"]["scores"]
    assert [entry["index"] for entry in scores] == list(range(1, len(scores) + 1))
    assert b"hello" + b"".join(covered(TEXT, scores)) == TEXT.encode()
    assert scores[0]["start"] == 5
    for entry in scores:
        logprobs = [other["logprob"] for other in entry["alternatives"]]
        assert len(logprobs) == 3
        assert logprobs == sorted(logprobs, reverse=True)
        assert entry["logprob"] <= logprobs[0] < 0
        own = [other["logprob"] for other in entry["alternatives"] if other["id"] == entry["id"]]
        assert own in ([], [entry["logprob"]])


def test_logprobs_have_the_shape_of_the_api(engine: EngineServer) -> None:
    answer = score(engine, TEXT)
    logprobs = answer["choices"][0]["logprobs"]
    scores = answer["kcode"]["scores"]
    assert sorted(logprobs) == ["text_offset", "token_logprobs", "tokens", "top_logprobs"]
    assert {len(values) for values in logprobs.values()} == {answer["usage"]["prompt_tokens"]}
    assert logprobs["tokens"][0] == "hello"
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0], logprobs["text_offset"][0]) == (None, None, 0)
    assert logprobs["token_logprobs"][1:] == pytest.approx([entry["logprob"] for entry in scores], abs=1e-4)
    for top, entry in zip(logprobs["top_logprobs"][1:], scores, strict=True):
        assert set(top) == {other["text"] for other in entry["alternatives"]}


@pytest.mark.parametrize("start", [5, 6, 7, 8, 9, 15, len(TEXT.encode()) - 1])
def test_scores_begin_at_the_token_that_reaches_beyond_the_byte(engine: EngineServer, start: int) -> None:
    whole = score(engine, TEXT)["kcode"]["scores"]
    part = score(engine, TEXT, start)
    assert part["kcode"]["scores"] == [entry for entry in whole if entry["start"] + entry["bytes"] > start]
    assert part["kcode"]["scores"][0]["start"] <= start
    scored = [value is not None for value in part["choices"][0]["logprobs"]["token_logprobs"]]
    assert scored == [False] * (len(scored) - len(part["kcode"]["scores"])) + [True] * len(part["kcode"]["scores"])


@pytest.mark.parametrize("start", [len(TEXT.encode()), 10_000])
def test_nothing_is_scored_beyond_the_end(engine: EngineServer, start: int) -> None:
    answer = score(engine, TEXT, start)
    assert (answer["kcode"]["scores"], answer["choices"][0]["logprobs"]) == ([], None)
    assert score(engine, "h")["kcode"]["scores"] == []


def test_cached_text_is_scored_all_the_same(engine: EngineServer) -> None:
    text = "a text that nobody scored before " * 4
    first, second = score(engine, text), score(engine, text)
    assert second["kcode"]["scores"] == first["kcode"]["scores"]
    assert len(first["kcode"]["scores"]) == first["usage"]["prompt_tokens"] - 1
    tail = score(engine, text, len(text) - 4)
    assert tail["kcode"]["scores"] == first["kcode"]["scores"][-len(tail["kcode"]["scores"]) :]
    assert tail["usage"]["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"] - 1 - len(
        tail["kcode"]["scores"]
    )


def test_no_tokens_asked_for_no_tokens_given(engine: EngineServer) -> None:
    answer = complete(engine, "hello", max_tokens=0)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("", "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["kcode"] == {"token_ids": [], "scores": [], "speculation": {"drafted": 0, "accepted": 0}}


def test_stop_text_cuts_the_answer_and_ends_the_request(engine: EngineServer) -> None:
    whole = complete(engine, "hello", max_tokens=40)["choices"][0]["text"]
    stop = whole[10:12]
    cut = complete(engine, "hello", max_tokens=40, stop=[stop, "never said"])
    assert cut["choices"][0]["text"] == whole[: whole.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < 40
    assert complete(engine, "hello", max_tokens=40, stop=stop)["choices"] == cut["choices"]
    engine.wait_metric("kcode_blocks_used", 0)


def test_unset_limit_is_that_of_the_api(engine: EngineServer) -> None:
    unset = post(engine, prompt="hello", temperature=0).json()
    assert unset["choices"] == complete(engine, "hello", max_tokens=16)["choices"]


def test_seed_fixes_the_answer(engine: EngineServer) -> None:
    answers = [complete(engine, "dice", temperature=1.5, seed=seed, max_tokens=12)["kcode"]["token_ids"] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


REFUSED = [
    ("empty text", {"prompt": ""}, 400, "prompt: it is empty"),
    ("no ids", {"prompt": []}, 400, "prompt: it is empty"),
    ("no prompt", {"max_tokens": 1}, 400, "prompt"),
    ("unknown id", {"prompt": [1, 99999]}, 400, "token 99999 is beyond the vocabulary"),
    ("negative id", {"prompt": [1, -2]}, 400, "-2"),
    ("mixed prompts", {"prompt": ["a", 1]}, 400, "prompt: give texts, token ids, or lists"),
    ("an empty one of several prompts", {"prompt": ["a", ""]}, 400, "prompt: it is empty"),
    ("too many answers together", {"prompt": ["a"] * 20, "n": 10}, 400, "20 prompts with 10 answers each are 200"),
    ("no markers for a gap", {"prompt": "x", "suffix": "y"}, 400, "suffix: tiny has no tokens for filling a gap"),
    ("best of", {"prompt": "x", "best_of": 3}, 400, "best_of: it has to be n, which is 1, got 3"),
    ("bias of no token", {"prompt": "x", "logit_bias": {"99999": 1}}, 400, "logit_bias: '99999' is none of the"),
    ("too many alternatives", {"prompt": "x", "logprobs": 21}, 400, "logprobs"),
    ("own field", {"prompt": "x", "kcode": {"score_fron": 1}}, 400, "kcode.score_fron"),
    ("negative start", {"prompt": "x", "kcode": {"score_from": -1}}, 400, "kcode.score_from"),
    ("stream", {"prompt": "x", "stream": "yes"}, 400, "stream"),
    ("too long", {"prompt": "x " * 20000}, 413, "the context holds 32768"),
]


@pytest.mark.parametrize(("body", "status", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_wrong_request_is_refused_by_name(engine: EngineServer, body: dict[str, object], status: int, text: str) -> None:
    response = post(engine, **body)
    assert (response.status_code, sorted(response.json()["error"])) == (status, ["code", "message", "param", "type"])
    assert text in response.json()["error"]["message"]
    assert "\n" not in response.json()["error"]["message"]


def test_closing_the_connection_cancels_the_reading(engine: EngineServer) -> None:
    before = engine.metric("kcode_prompt_tokens_computed_total")
    body = json.dumps({"prompt": "y " * 14_000, "max_tokens": 0, "echo": True, "logprobs": 2}).encode()
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.connect(str(engine.socket))
    raw.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    deadline = time.monotonic() + 20
    while engine.metric("kcode_prompt_tokens_computed_total") == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    raw.close()
    engine.wait_metric("kcode_blocks_used", 0)
    assert engine.metric("kcode_prompt_tokens_computed_total") - before < 25_000
