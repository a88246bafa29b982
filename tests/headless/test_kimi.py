"""`kcode -p` on a synthetic Kimi model: what it says is noise, but the loop, the ids, the cache and the reasoning are real."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kcode_backend.synth import write
from kcode_backend.synth_config import SynthShape

if TYPE_CHECKING:
    from tests.headless.conftest import Program

STEPS = 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_k25", "thinking"),
    [pytest.param(True, "on", id="k25 thinking"), pytest.param(False, "off", id="k2 instant")],
)
def test_the_whole_loop_runs_on_a_synthetic_model(program: Program, is_k25: bool, thinking: str) -> None:
    folder = program.home / "Synthetic-K2"
    write(folder, SynthShape(layers=2, experts=4, is_k25=is_k25))
    arguments = ("-p", "Repair calc.py", "-m", str(folder), "--profile", "kimi", "--max-turns", str(STEPS), "--seed", "4")
    settings = {"KCODE_THINKING": thinking, "KCODE_MAX_ANSWER_TOKENS": "48", "KCODE_ENGINE_IDLE_S": "30"}
    ended = program.run(*arguments, "--output-format", "stream-json", **settings)
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    # It ends at the limit, unless the noise has the token that ends an answer in it, or begins with it three times in a row.
    empty = "empty answers in a row" in str(events[-1].get("reason"))
    assert ended.returncode in ((2,) if empty else (0, 3)), ended.stdout[-1000:] + ended.stderr
    answers = [event["message"] for event in events if event["type"] == "assistant"]
    results = [event["message"]["content"][0] for event in events if event["type"] == "user"]
    assert 1 <= len(answers) <= STEPS
    parts = [part for answer in answers for part in answer["content"]]
    # Nobody can say when noise ends its thinking, only that it begins with it.
    assert all((answer["content"][0]["type"] == "thinking") == is_k25 for answer in answers if answer["content"])
    calls = [part for part in parts if part["type"] == "tool_use"]
    assert [call["id"] for call in calls] == [f"functions.{call['name']}:{number}" for number, call in enumerate(calls)]
    assert {result["tool_use_id"] for result in results} <= {call["id"] for call in calls}
    prompts = [answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"] for answer in answers]
    assert answers[0]["usage"]["cache_read_input_tokens"] == 0
    for before, prompt, answer in zip(prompts, prompts[1:], answers[1:], strict=False):
        assert prompt > before
        assert answer["usage"]["cache_read_input_tokens"] >= before


@pytest.mark.slow
def test_a_session_of_the_engine_needs_no_seed_to_be_replayed(program: Program) -> None:
    folder = program.home / "Synthetic-K2"
    write(folder, SynthShape(layers=2, experts=4, is_k25=False))
    settings = {"KCODE_MAX_ANSWER_TOKENS": "24", "KCODE_ENGINE_IDLE_S": "30", "KCODE_THINKING": "off"}
    program.run("-p", "Repair calc.py", "-m", str(folder), "--profile", "kimi", "--max-turns", "3", **settings)
    (transcript,) = program.transcripts()
    opened = next(json.loads(line) for line in transcript.read_text().splitlines() if '"type":"opened"' in line)
    assert opened["sampling"]["seed"] >= 0
    again = program.run("replay", **settings)
    assert again.stdout.endswith("all as recorded\n"), again.stdout + again.stderr
    other = program.run("replay", "--seed", str(opened["sampling"]["seed"] + 1), **settings)
    assert other.returncode == 3, "noise, drawn with another seed"
