"""What sub-agents cost the engine: a real one, with a random tiny model and a long conversation."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass

import httpx
import pytest

from kcode.events import TurnFinished
from kcode.models.local import LocalModel
from kcode.opening import Sessions, engine_options
from kcode.settings import Settings
from kcode.tools.task import TaskArguments
from kcode_backend.kv.pool import BLOCK_TOKENS
from tests.backend.conftest import TinyModel, WriteTiny
from tests.swarm.conftest import Project, events_of

# The vocabulary is little more than bytes: a sub-agent's own part takes four times the tokens of a real one's.
PARENT_TOKENS = 20_000


@dataclass(frozen=True, slots=True)
class Held:
    """Blocks of the cache that hold something, and of all how many there are."""

    blocks: int
    of: int


async def held(client: httpx.AsyncClient) -> Held:
    figures = dict(line.split() for line in (await client.get("/metrics")).text.splitlines() if not line.startswith("#"))
    blocks = int(float(figures["kcode_blocks"]))
    return Held(blocks - int(float(figures["kcode_blocks_free"])), blocks)


@pytest.mark.slow
def test_two_sub_agents_cost_less_than_a_tenth_of_their_parents_memory(project: Project, write_tiny: WriteTiny) -> None:
    async def scene() -> None:
        model = write_tiny(TinyModel(context=32_768))
        settings = Settings(model=str(model), profile="generic", max_turns=2, max_answer_tokens=32, kv_disk_gb=0, temperature=0)
        engine = LocalModel(engine_options(model, settings, project.paths), project.paths.runtime, project.paths.logs)
        sessions = Sessions(settings, project.workspace, project.paths, "auto")
        try:
            await engine.start()
            session = await sessions.open(None, None, None)
            transport = httpx.AsyncHTTPTransport(uds=str(engine.socket))
            async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=60) as client:
                events = await events_of(session, "Remember this. " + "hello world. " * 1700)
                assert isinstance(events[-1], TurnFinished)
                before = await held(client)
                swarm = session.swarm
                assert swarm is not None
                tasks = [TaskArguments(description=name, prompt=f"Look at {name}.", fork=True) for name in ("a.py", "b.py")]
                outcomes = await asyncio.gather(*(swarm.run(task, lambda text: None) for task in tasks))
                after = await held(client)
            await session.close()
        finally:
            if engine.process_id is not None:
                os.kill(engine.process_id, signal.SIGKILL)
            await engine.close()
        assert before.blocks * BLOCK_TOKENS > PARENT_TOKENS
        assert after.blocks < after.of, "nothing had to make room, so whatever they held is still counted"
        assert before.blocks < after.blocks < 1.1 * before.blocks
        for outcome in outcomes:
            assert outcome.usage.completion_tokens > 0, outcome.text
            assert outcome.usage.cached_tokens > 0.95 * outcome.usage.prompt_tokens

    asyncio.run(scene())
