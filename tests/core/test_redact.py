"""Keys are taken out of what a model elsewhere is sent, and nothing else is."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcode.messages import Message, Text, ToolCall, ToolResult
from kcode.models.redact import redacted, redacted_message

ROOT = Path(__file__).resolve().parents[2]
MIXED = "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8bC0fD2hJ4lM6nP8rS0tU1wX3z"
# Put together here, so that no file of this repository holds the form of a key.
KEYS = {
    "AWS key": "AKIA" + "QWERTYUIOPASDF23",
    "GitHub token": "ghp_" + MIXED[:36],
    "GitLab token": "glpat-" + MIXED[:20],
    "Slack token": "xoxb-" + "123456789012-" + MIXED[:24],
    "Google key": "AIza" + MIXED[:35],
    "Stripe key": "sk_live_" + MIXED[:24],
    "OpenAI key": "sk-" + "proj-" + MIXED[:48],
    "npm token": "npm_" + MIXED[:36],
    "JWT": ".".join(("eyJ" + MIXED[:20], "eyJ" + MIXED[:40], MIXED[:43])),
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + (MIXED + "\n") * 3 + "-----END RSA " + "PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_of_a_known_form_is_replaced_by_its_kind(kind: str) -> None:
    text, kinds = redacted(f"before {KEYS[kind]} after")
    assert (text, kinds) == (f"before [redacted: {kind}] after", {kind})


@pytest.mark.parametrize(
    "line", ["API_SECRET={}", 'export DB_PASSWORD="{}"', "client_SECRET: '{}'", '{{\\"AUTH_TOKEN\\": \\"{}\\"}}']
)
def test_what_a_name_calls_secret_goes_when_it_looks_sampled(line: str) -> None:
    text, kinds = redacted(line.format(MIXED))
    assert (MIXED in text, kinds) == (False, {"secret"})
    for harmless in ("replace_this_by_your_own", "a" * 40, "0" * 40, str(uuid.UUID(int=7)), "1234567890abcdef" * 4):
        assert redacted(line.format(harmless)) == (line.format(harmless), frozenset())


@given(st.text(max_size=200), st.sampled_from(sorted(KEYS)), st.text(max_size=50))
def test_it_is_the_same_each_time_and_once_is_enough(before: str, kind: str, after: str) -> None:
    once = redacted(f"{before} {KEYS[kind]} {after}")
    assert once == redacted(f"{before} {KEYS[kind]} {after}")
    assert redacted(once[0]) == (once[0], frozenset())


@given(st.text())
def test_text_without_keys_is_never_changed(text: str) -> None:
    assert redacted(text) == (text, frozenset())


def test_no_file_of_this_repository_is_changed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, listed):
        file = ROOT / name
        if file.is_file() and file.stat().st_size < 1 << 20:
            text = file.read_text(errors="replace")
            assert redacted(text) == (text, frozenset()), name


def test_every_part_of_a_message_is_looked_at_and_arguments_stay_json() -> None:
    key = KEYS["private key"]
    call = ToolCall("1", "create", json.dumps({"content": key}))
    message = Message("assistant", (Text(key), call, ToolResult("1", "bash", key)))
    changed, kinds = redacted_message(message)
    assert kinds == {"private key"}
    assert MIXED not in repr(changed)
    assert json.loads(changed.calls[0].arguments) == {"content": "[redacted: private key]"}
    plain = Message("user", (Text("hello"),))
    assert redacted_message(plain)[0] is plain
