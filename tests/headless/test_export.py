"""`kcode export` and `--fork`, as a user runs them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from kcode.export import trajectory
from kcode.messages import Message, ToolCall, user
from kcode.transcript import Header, Record, Said
from tests.headless.conftest import Inside, Program

STEP_KEYS = {"step_id", "timestamp", "source", "message", "observation", "llm_call_count"}
AGENT_KEYS = STEP_KEYS | {"model_name", "reasoning_content", "tool_calls", "metrics"}
METRICS = {"prompt_tokens", "completion_tokens", "cached_tokens", "completion_token_ids"}


def check_trajectory(found: dict[str, object]) -> list[dict[str, object]]:
    """The rules of ATIF-v1.8 that a document can break; its steps."""
    assert set(found) == {"schema_version", "session_id", "agent", "steps", "final_metrics"}
    assert found["schema_version"] == "ATIF-v1.8"
    assert {"name", "version"} <= set(found["agent"])
    steps = found["steps"]
    assert [step["step_id"] for step in steps] == list(range(1, len(steps) + 1))
    for step in steps:
        assert step["source"] in {"system", "user", "agent"}
        assert isinstance(step["message"], str)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", step["timestamp"])
        assert set(step) <= (AGENT_KEYS if step["source"] == "agent" else STEP_KEYS - {"llm_call_count", "observation"})
        if step.get("llm_call_count") == 0:
            assert not {"metrics", "reasoning_content"} & set(step)
        assert set(step.get("metrics", {})) <= METRICS
        calls = [call["tool_call_id"] for call in step.get("tool_calls", [])]
        assert all(isinstance(call["arguments"], dict) for call in step.get("tool_calls", []))
        assert {result["source_call_id"] for result in step.get("observation", {"results": []})["results"]} <= set(calls)
    return steps


def test_a_session_is_exported_in_three_formats(inside: Inside, program: Program, fixing: tuple[dict[str, object], ...]) -> None:
    thinking = {"thinking": "hm <b>", "text": "```\nfenced\n```", **fixing[0]}
    assert inside("-p", "fix <i>add</i>", "-m", program.script(thinking, *fixing[1:]))[0] == 0
    _, markdown, _ = inside("export")
    assert markdown.startswith("# fix <i>add</i>\n\nkcode ")
    assert '"old": "a - b"' in markdown
    assert "add adds now" in markdown
    code, _, _ = inside("export", "--format", "html", "-o", "trace.html")
    page = (program.workspace / "trace.html").read_text()
    assert code == 0
    assert "fix &lt;i&gt;add&lt;/i&gt;" in page
    assert "<b>" not in page
    assert not re.search(r"(src|href)=|@import|url\(", page), "the page loads nothing"
    HTMLParser().feed(page)
    _, document, _ = inside("export", "--format", "atif")
    steps = check_trajectory(json.loads(document))
    assert [step["source"] for step in steps] == ["system", "user", "agent", "agent", "agent"]
    assert steps[2]["reasoning_content"] == "hm <b>"
    assert steps[2]["tool_calls"][0]["function_name"] == "read"
    assert "return a - b" in steps[2]["observation"]["results"][0]["content"]
    assert inside("export", "nosuch")[0] == 1


def test_arguments_that_are_no_object_are_kept_as_written() -> None:
    called = Message("assistant", (ToolCall("a", "read", "{broken"),))
    records: list[Record] = [Header(1, "id", "/p", "2026-01-01T00:00:00Z", "0.1.0"), Said(user("x"), None), Said(called, None)]
    steps = check_trajectory(trajectory(records))
    assert steps[1]["tool_calls"] == [
        {"tool_call_id": "a", "function_name": "read", "arguments": {}, "extra": {"raw_arguments": "{broken"}}
    ]
    assert steps[1]["llm_call_count"] == 0


def test_a_fork_has_the_past_and_leaves_its_session_alone(inside: Inside, program: Program) -> None:
    assert inside("-p", "one", "-m", program.script({"text": "first"}))[0] == 0
    (first,) = program.transcripts()
    before = first.read_bytes()
    again = program.script({"text": "first"}, {"text": "second"}, resume=True)
    code, out, _ = inside("-p", "two", "--fork", first.stem, "-m", again, "--output-format", "json")
    assert (code, json.loads(out)["result"]) == (0, "second")
    assert first.read_bytes() == before
    (forked,) = [path for path in program.transcripts() if path != first]
    header = json.loads(forked.read_text().splitlines()[0])
    assert (header["session_id"], header["forked_from"]) == (forked.stem, first.stem)
    assert Path(json.loads(out)["session_id"]).name == forked.stem
