"""Compaction and the weights of a conversation over a real engine with a random tiny model."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kcode.approval import Approval
from kcode.context import Context
from kcode.events import ContextCompacted, StepFinished
from kcode.loop import work
from kcode.messages import system
from kcode.model import Sampling
from kcode.models.local import LocalModel
from kcode.opening import engine_options, open_policy
from kcode.paths import Paths
from kcode.profiles import GENERIC
from kcode.session import Equipment, Session
from kcode.settings import Settings
from kcode.tools.toolbox import build_specs, build_tools
from kcode.transcript import Compacted, create
from kcode.turn import Limits
from tests.backend.conftest import TinyModel, WriteTiny, write_tiny
from tests.core.conftest import collect

__all__ = ["write_tiny"]


@pytest.fixture
async def session(workspace: Path, paths: Paths, write_tiny: WriteTiny) -> AsyncIterator[Session]:
    """A session with one tool over the engine, which is killed in the end."""
    settings = Settings(kv_disk_gb=0)
    model = LocalModel(engine_options(write_tiny(TinyModel(context=8192)), settings, paths), paths.runtime, paths.logs)
    sandbox = await open_policy(Settings(sandbox="danger-full-access"), workspace, paths)
    tools = build_tools(sandbox, ("glob",), model)
    context = Context(create(paths.sessions(workspace), workspace, "0.1.0"), None)
    context.add(system("You are kcode."))
    equipment = Equipment(
        model=model,
        sandbox=sandbox,
        tools=tools,
        specs=build_specs(tools),
        profile=GENERIC,
        limits=Limits(steps=1),
        sampling=Sampling(temperature=0, max_tokens=1600),
        driver=work,
        approval=Approval("auto", None, no_work_to_lose),
        checkpoints=None,
    )
    opened = Session(equipment, context.transcript, context)
    try:
        yield opened
    finally:
        await opened.close()
        if model.process_id is not None:
            os.kill(model.process_id, signal.SIGKILL)


async def no_work_to_lose() -> bool:
    return False


@pytest.mark.slow
async def test_note_is_read_from_the_cache_and_weights_are_exact(session: Session) -> None:
    words = "Remember these words: " + "hello world. " * 20
    (answer,) = [event for event in await collect(session, words) if isinstance(event, StepFinished)]
    read = answer.usage.prompt_tokens + answer.usage.completion_tokens

    found = await session.context_breakdown()
    assert found.is_exact
    assert sum(tokens for _, tokens in found.rows) == found.limit
    kinds = dict(found.kinds)
    assert kinds["user"] > len(words) / 4
    assert kinds["tools"] > kinds["system"] > 0

    events = await collect(session, "/compact")
    (record,) = [record for record in session.records if isinstance(record, Compacted)]
    # The last token that was sampled is not yet computed.
    assert record.usage.cached_tokens == read - 1
    assert record.usage.prompt_tokens > read
    (told,) = [event for event in events if isinstance(event, ContextCompacted)]
    assert told.after_tokens == (await session.context_breakdown()).tokens
