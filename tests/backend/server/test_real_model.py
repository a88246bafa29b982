"""The default model behind the whole server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.backend.server.conftest import EngineServer

READ = {
    "type": "function",
    "function": {
        "name": "read",
        "description": "Read a file of the project.",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string"}},
            "required": ["path"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.model
def test_a_conversation_with_a_tool(start: Callable[..., EngineServer], real_model: Path) -> None:
    engine = start(real_model, "--context", "4096")
    engine.wait_ready()
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "Which function does src/adder.py define? Look into the file."}
    ]
    fields = {"temperature": 0, "tools": [READ], "max_tokens": 80}
    first = engine.ask("", messages=messages, tool_choice="required", parallel_tool_calls=False, **fields)
    (call,) = first["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("read", {"path": "src/adder.py"})

    messages += [
        {**first["choices"][0]["message"], "kcode": first["kcode"]},
        {"role": "tool", "tool_call_id": call["id"], "content": "def add_numbers(a, b):\n    return a + b\n"},
        {"role": "user", "content": "Do not call a tool. Reply with the name of the function only."},
    ]
    second = engine.ask("", messages=messages, tool_choice="none", **fields)
    assert "add_numbers" in second["choices"][0]["message"]["content"]
    assert second["choices"][0]["finish_reason"] == "stop"
    before = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    # The last sampled token and what the grammar forced after it were never computed.
    assert before - 4 <= second["usage"]["prompt_tokens_details"]["cached_tokens"] < before


@pytest.mark.model
def test_a_gap_in_code_is_filled_with_what_belongs_there(start: Callable[..., EngineServer], real_model: Path) -> None:
    engine = start(real_model, "--context", "2048")
    engine.wait_ready()
    before = 'def area(width, height):\n    """The area of a rectangle."""\n    return '
    after = "\n\n\ndef volume(width, height, depth):\n    return area(width, height) * depth\n"
    with engine.client() as client:
        response = client.post("/v1/completions", json={"prompt": before, "suffix": after, "temperature": 0, "max_tokens": 24})
    assert response.status_code == 200, response.text
    answer = response.json()
    middle = answer["choices"][0]["text"]
    assert middle.strip() == "width * height"
    assert answer["choices"][0]["finish_reason"] == "stop", "the model was not told where the gap ends"
    names: dict[str, object] = {}
    exec(before + middle + after, names)
    volume = names["volume"]
    assert callable(volume)
    assert volume(2, 3, 4) == 24
