"""The recorded agent session: the file is whole, and playing it against our server computes nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.backend.conftest import TinyModel, WriteTiny

ROOT = Path(__file__).resolve().parents[3]
BENCH = ROOT / "backend" / "bench"
TRACE = BENCH / "traces" / "bugfix.json"
LIMIT_S = 300


def test_the_trace_is_a_whole_session_of_sixty_steps() -> None:
    text = TRACE.read_text()
    assert len(text) <= 200_000
    trace = json.loads(text)
    messages, declared = trace["messages"], {tool["function"]["name"] for tool in trace["tools"]}
    answers = [message for message in messages if message["role"] == "assistant"]
    assert [message["role"] for message in messages[:2]] == ["system", "user"]
    assert len(answers) == len(trace["answer_tokens"]) == 60
    assert min(trace["answer_tokens"]) > 10
    open_calls: list[str] = []
    for message in messages[2:]:
        if message["role"] == "assistant":
            assert not open_calls, f"no result for {open_calls}"
            open_calls = [call["id"] for call in message["tool_calls"]]
            assert {call["function"]["name"] for call in message["tool_calls"]} <= declared
        else:
            open_calls.remove(message["tool_call_id"])
    assert not open_calls
    assert answers[-1]["tool_calls"][0]["function"]["name"] == "finish"
    used = {call["function"]["name"] for answer in answers for call in answer["tool_calls"]}
    assert used >= {"read", "grep", "str_replace", "create", "run_tests", "bash", "git"}


def test_the_recorded_edits_stand_in_the_files_of_the_trace() -> None:
    trace = json.loads(TRACE.read_text())
    files: dict[str, str] = trace["files"]
    edits = 0
    for message in trace["messages"]:
        for call in message.get("tool_calls", []):
            if call["function"]["name"] == "str_replace":
                edit = json.loads(call["function"]["arguments"])
                assert files[edit["path"]].count(edit["old"]) == 1, edit
                files[edit["path"]] = files[edit["path"]].replace(edit["old"], edit["new"])
                edits += 1
    assert edits >= 15


def test_a_replay_prefills_each_token_once(tmp_path: Path, tiny: TinyModel, write_tiny: WriteTiny) -> None:
    """Three steps of a session with a random model, whose tokens are letters: so the texts are cut short."""
    trace = json.loads(TRACE.read_text())
    messages = [{**message, "content": (message["content"] or "")[:150]} for message in trace["messages"][:8]]
    short = {**trace, "tools": trace["tools"][:1], "messages": messages, "answer_tokens": [10, 20, 15]}
    (tmp_path / "short.json").write_text(json.dumps(short))
    model = write_tiny(replace(tiny, context=16384))
    command = [sys.executable, str(BENCH / "replay.py"), str(model), "--trace", str(tmp_path / "short.json")]
    done = subprocess.run(
        [*command, "--context", "16384"], capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout.splitlines()[-1])
    assert figures["steps"] == 3
    assert 3 <= figures["written_tokens"] <= 45
    # Every token of the last prompt was computed once, except those that were sampled.
    assert figures["repeated_tokens"] <= 3
    assert figures["prefilled_tokens"] <= figures["prompt_tokens"] + 3
