"""A server that tells no limit refuses what is too long: the limit is learnt, the conversation compacted, the turn goes on."""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path

import pytest

from kcode.events import ContextCompacted, Event, Notice, TurnFinished
from kcode.models.context_limit import ContextLimit
from kcode.opening import Sessions
from kcode.paths import Paths
from kcode.session import Session
from kcode.settings import Settings
from tests.fakes.openai_server import Refuse, Seen, Stream, data, delta, said, serving

OPENAI = (
    "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens "
    "(112946 in the messages, 10000 in the completion). Please reduce the length of the messages or completion."
)


def calls(number: int, command: str, prompt_tokens: int) -> Stream:
    """An answer that is one call of bash."""
    function = {"name": "bash", "arguments": json.dumps({"command": command})}
    call = {"index": 0, "id": f"functions.bash:{number}", "type": "function", "function": function}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 20}
    return Stream(
        (delta(role="assistant", tool_calls=[call]), delta("tool_calls"), data(choices=[], usage=usage), "data: [DONE]")
    )


async def turn(session: Session, text: str) -> list[Event]:
    async with aclosing(session.submit(text)) as events:
        return [event async for event in events]


async def opened(seen: Seen, workspace: Path, paths: Paths) -> Session:
    settings = Settings(sandbox="danger-full-access", base_url=seen.url, model="m", profile="generic")
    return await Sessions(settings, workspace, paths, "auto").open(None, None, None)


def ended(events: list[Event]) -> TurnFinished:
    assert isinstance(events[-1], TurnFinished)
    return events[-1]


@pytest.mark.parametrize(
    ("status", "body", "limit"),
    [
        (400, json.dumps({"error": {"message": OPENAI, "code": "context_length_exceeded"}}), 16384),
        (400, json.dumps({"object": "error", "message": OPENAI, "type": "BadRequestError", "code": 400}), 16384),
        (
            400,
            '{"error":{"code":400,"message":"the request exceeds the available context size. try increasing the context size or '
            'enable context shift","type":"exceed_context_size_error","n_prompt_tokens":14429,"n_ctx":8192}}',
            8192,
        ),
        (500, '{"error":{"message":"Requested tokens (2285) exceed context window of 2048"}}', 2048),
        (
            400,
            '{"error":{"message":"Invalid request: Your request exceeded model token limit: 262144 (requested: 269030)"}}',
            262144,
        ),
        (400, '{"error":{"message":"model max length exceeded, max length:8192"}}', 8192),
        (400, '{"message":"The input (5000 tokens) is longer than the model\'s context length (4096 tokens)."}', 4096),
        (400, '{"error":{"message":"prompt is too long: 210000 tokens > 200,000 maximum"}}', 200000),
        (
            400,
            '{"error":{"message":"Prompt contains 40000 tokens, too large for model with 32768 maximum context length"}}',
            32768,
        ),
        (400, '{"error":{"message":"Input tokens exceed the configured limit of 272000 tokens."}}', 272000),
        (
            400,
            '{"error":{"message":"The input token count (1100000) exceeds the maximum number of tokens allowed (1048576)."}}',
            1048576,
        ),
    ],
)
def test_servers_words_are_understood(status: int, body: str, limit: int) -> None:
    known = ContextLimit()
    assert known.refused(status, body.encode(), 400_000)
    assert known.tokens == limit


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, '{"error":{"message":"messages: at least one is required"}}'),
        (
            413,
            '{"error":{"message":"Request too large: tokens per minute (TPM): Limit 10000, Requested 21247; context length"}}',
        ),
        (400, '{"error":{"message":"\'max_tokens\' is too large: 9000. This model\'s maximum context length is 4096 tokens"}}'),
        (429, json.dumps({"error": {"message": OPENAI}})),
    ],
)
def test_other_refusals_teach_nothing(status: int, body: str) -> None:
    known = ContextLimit()
    assert not known.refused(status, body.encode(), 400_000)
    assert known.tokens is None


def test_without_a_number_the_limit_is_guessed_from_what_was_answered() -> None:
    body = b"the request exceeds the available context size, try increasing it"
    known = ContextLimit()
    known.accepted(30_000, 10_000)
    assert known.refused(400, body, 60_000)
    assert known.tokens == 18_000
    near = ContextLimit()
    near.accepted(30_000, 10_000)
    assert near.refused(400, body, 30_300)
    assert near.tokens == 10_000
    assert ContextLimit(4096).refused(400, body, 1_000_000)


async def test_a_refused_conversation_is_compacted_and_goes_on(workspace: Path, paths: Paths) -> None:
    refusal = Refuse(400, json.dumps({"error": {"message": OPENAI, "code": "context_length_exceeded"}}))
    behaviours = (
        calls(0, "seq 1 3000", 3000),
        calls(1, "seq 3000 6000", 11000),
        refusal,
        said("I counted. Next: stop."),
        said("Done."),
    )
    with serving(*behaviours) as seen:
        session = await opened(seen, workspace, paths)
        events = await turn(session, "count far")
        await session.close()
    assert ended(events).status == "finished"
    assert ended(events).result == "Done."
    assert session.context_limit == 16384
    assert [event.by for event in events if isinstance(event, ContextCompacted)] == ["model"]
    assert any("refused the request as too long" in event.text for event in events if isinstance(event, Notice))
    last = json.dumps(seen.bodies[-1]["messages"])
    assert "I counted. Next: stop." in last
    assert "count far" in last
    assert len(last) < len(json.dumps(seen.bodies[2]["messages"])) / 2


async def test_what_cannot_be_compacted_ends_the_turn_with_the_servers_words(workspace: Path, paths: Paths) -> None:
    refusal = Refuse(400, json.dumps({"error": {"message": OPENAI}}))
    with serving(refusal) as seen:
        session = await opened(seen, workspace, paths)
        events = await turn(session, "hello")
        await session.close()
    assert ended(events).status == "error"
    assert "maximum context length is 16384 tokens" in ended(events).reason
