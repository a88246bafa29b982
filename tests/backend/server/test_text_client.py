"""kcode's client of plain text and the real engine behind it, with a random tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kcode.errors import EngineDied, ModelError
from kcode.model import TextModel
from kcode.models.local import EngineOptions, LocalModel
from tests.backend.server.conftest import ROOT

TEXT = "hello wörld 🙂 hello"


@pytest.fixture
async def model(tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalModel]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "backend"))
    monkeypatch.setenv("HOME", str(tmp_path))
    client = LocalModel(EngineOptions(tiny_file, threads=2, idle_s=60.0), tmp_path / "run", tmp_path / "logs")
    yield client
    if client.process_id is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(client.process_id, signal.SIGKILL)
    await client.close()


async def test_text_is_scored_and_continued_through_the_socket(model: LocalModel) -> None:
    assert isinstance(model, TextModel)
    whole = await model.score(TEXT, 0, 3)
    data = TEXT.encode()
    assert b"hello" + b"".join(data[token.start : token.start + token.length] for token in whole.tokens) == data
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(whole.tokens) + 1, 0)
    for token in whole.tokens:
        likely = [other.logprob for other in token.alternatives]
        assert len(likely) == 3
        assert likely == sorted(likely, reverse=True)
        assert token.logprob <= likely[0] < 0
    tail, head = await asyncio.gather(model.score(TEXT, 9, 3), model.score(TEXT[:9], 0, 1))
    assert tail.tokens == tuple(token for token in whole.tokens if token.start + token.length > 9)
    assert [token.logprob for token in head.tokens] == pytest.approx(
        [token.logprob for token in whole.tokens[: len(head.tokens)]]
    )

    more = await model.continue_text(TEXT, "\0", 12)
    assert more == await model.continue_text(TEXT, "\0", 12)
    assert more.usage.completion_tokens == 12
    first = next(other.text for other in (await model.score(f"{TEXT}x", len(data), 1)).tokens[0].alternatives)
    assert more.text.startswith(first)
    stop = more.text[4:6]
    cut = await model.continue_text(TEXT, stop, 12)
    assert cut.text == more.text[: more.text.index(stop)]

    with pytest.raises(ModelError, match=r"HTTP 413: the prompt has \d+ tokens but the context holds"):
        await model.score("x " * 20_000, 0, 3)
    with pytest.raises(ModelError, match="HTTP 400: prompt: it is empty"):
        await model.score("", 0, 3)
    reading = asyncio.create_task(model.score("y " * 14_000, 0, 3))
    await asyncio.sleep(0.3)
    assert model.process_id is not None
    os.kill(model.process_id, signal.SIGKILL)
    with pytest.raises(EngineDied, match="killed by SIGKILL"):
        await reading
