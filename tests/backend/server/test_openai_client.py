"""The official `openai` client, unmodified, against the real server with the default model.

It runs in an environment of its own: KCODE_PEER_PYTHON names a Python that has the package.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.backend.server.conftest import accepts

if TYPE_CHECKING:
    from tests.backend.server.conftest import StartEngine

CLIENT = Path(__file__).with_name("openai_client.py")
PERSON = {"name": "Ada", "age": 36}


@pytest.fixture
def peer_python() -> str:
    python = os.environ.get("KCODE_PEER_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import openai"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no openai package; set KCODE_PEER_PYTHON to a Python that has it")
    return python


@pytest.mark.peer
@pytest.mark.model
def test_official_client_sees_what_it_expects(start: StartEngine, real_model: Path, peer_python: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start(real_model, "--port", str(port), "--api-key", "secret", "--name", "coder", "--context", "8192")
    url = f"http://127.0.0.1:{port}/v1"
    # It waits for the load by itself, once somebody listens.
    while not accepts(("127.0.0.1", port)):
        assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.05)
    done = subprocess.run([peer_python, str(CLIENT), url, "secret"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    chats, calls, texts, errors = said["chats"], said["calls"], said["texts"], said["errors"]
    assert chats["text"] == chats["streamed"]
    assert (chats["tokens"][1], chats["without_choices"], chats["indexes"]) == (chats["stream_usage"], 0, [0, 1, 2])
    assert {entry[2] for entry in chats["likely"]} == {2}
    assert calls["call"] in (["read", '{"path": "a.py"}'], ["read", '{"path": "b.py"}'])
    assert (calls["streamed"], calls["person"]) == (["read", "tool_calls"], PERSON)
    assert "return a + b" in texts["texts"][0] == texts["streamed"]
    assert "return a - b" in texts["texts"][1]
    assert (texts["models"], texts["model"]) == (["coder"], "coder")
    codes = {name: error[:3] for name, error in errors.items()}
    assert codes == {
        "bad": [400, "invalid_value", "temperature"],
        "schema": [400, "invalid_grammar", "response_format"],
        "unknown": [404, "model_not_found", "model"],
        "long": [413, "context_length_exceeded", None],
        "key": [401, "invalid_api_key", None],
    }
