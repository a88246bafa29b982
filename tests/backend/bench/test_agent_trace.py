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


def short_trace(folder: Path) -> Path:
    """The first steps of the session with its texts cut short: to the random model each letter is a token."""
    trace = json.loads(TRACE.read_text())
    messages = [{**message, "content": (message["content"] or "")[:150]} for message in trace["messages"][:8]]
    path = folder / "short.json"
    path.write_text(json.dumps({**trace, "tools": trace["tools"][:1], "messages": messages, "answer_tokens": [10, 20, 15]}))
    return path


def test_the_summary_plays_the_session_and_ends_with_its_figures(tmp_path: Path, tiny: TinyModel, write_tiny: WriteTiny) -> None:
    """Without another engine: what is measured against one is null, what is measured against ourselves is a number."""
    model = write_tiny(replace(tiny, context=32768))
    command = [sys.executable, str(BENCH / "summary.py"), str(model), "--trace", str(short_trace(tmp_path)), "--no-install"]
    done = subprocess.run(
        [*command, "--threads", "2"], capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()

    figures = json.loads(lines[-1])
    of_peers = {"decode_x_llama", "prefill2k_x_llama", "prefill16k_x_llama", "trace_x_llama"}
    of_ours = {"decode_bandwidth_share", "resume_x_prefill", "batch4_x_single"}
    assert set(figures) == of_peers | of_ours
    assert {name for name, value in figures.items() if value is None} == of_peers
    assert all(figures[name] > 0 for name in of_ours)
    assert any("llama-cpp-python" in line for line in lines if line.startswith("decode_x_llama"))

    heading = next(number for number, line in enumerate(lines) if line.startswith("server"))
    name, steps, *_, prefilled, again, written = lines[heading + 1].split()
    assert (name, steps) == ("kcode", "3")
    assert 3 <= int(written) <= 45
    assert int(prefilled) > 500
    # Each token of the prompts was computed once; at the end of an answer one more may be.
    assert int(again) <= 3
