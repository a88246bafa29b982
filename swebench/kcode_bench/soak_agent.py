"""The process that the soak kills: kcode's own session over a workspace, with an engine to which each answer is dictated.

It writes one JSON line per thing that is surely on disk: `{"call": id}` and, once per step, its own time and memory.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from kcode.events import CallFinished, Notice, StepFinished, StepStarted, TurnFinished
from kcode.messages import Message
from kcode.model import ModelEvent, ModelRequest, Sampling, ToolSpec
from kcode.models.local import EngineOptions, LocalModel
from kcode.models.openai_wire import Writing
from kcode.opening import ChosenModel, Sessions
from kcode.paths import Paths, find_paths
from kcode.session import Session
from kcode.settings import Settings
from kcode.transcript import list_sessions
from kcode_bench.soak_plan import Reader, grammar_of, make_plan

ENGINE_IDLE_S = 600.0
MODEL_NAME = "soak"


def engine(model: Path, paths: Paths) -> LocalModel:
    """The same engine process for everyone who asks with the same paths."""
    options = EngineOptions(model, threads=1, idle_s=ENGINE_IDLE_S)
    return LocalModel(options, paths.runtime, paths.logs, writing=Writing("off", "all"))


class Dictated:
    """The engine, each of whose answers is bound to the one call that the plan has next. `spent_s` is the time it took."""

    def __init__(self, inner: LocalModel, calls: int) -> None:
        self._inner = inner
        self._reader = Reader(make_plan(calls))
        self.spent_s = 0.0

    @property
    def name(self) -> str:
        return MODEL_NAME

    @property
    def context_limit(self) -> int | None:
        return self._inner.context_limit

    @property
    def binds_answers(self) -> bool:
        return True

    @property
    def sees(self) -> bool | None:
        return False

    async def start(self) -> None:
        await self._inner.start()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        since = time.perf_counter()
        planned = self._reader.next(request.messages)
        made = sum(len(message.calls) for message in request.messages)
        grammar = 'start: "All is done."' if planned is None else grammar_of(planned, made)
        bound = replace(request, grammar=grammar, sampling=Sampling(temperature=0.0))
        async with aclosing(self._inner.stream(bound)) as events:
            async for event in events:
                self.spent_s += time.perf_counter() - since
                yield event
                since = time.perf_counter()

    async def count_tokens(self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...] = ()) -> int | None:
        return await self._inner.count_tokens(messages, tools)

    async def close(self) -> None:
        await self._inner.close()


class Clock:
    """Kcode's own time per step: what is left of it without the model and the tools."""

    def __init__(self, model: Dictated) -> None:
        self._model = model
        self._since = 0.0
        self._model_s = 0.0
        self._tools_s = 0.0

    def began(self) -> float | None:
        """A step begins; milliseconds of the one before, None for the first."""
        now = time.perf_counter()
        own_s = now - self._since - (self._model.spent_s - self._model_s) - self._tools_s if self._since else None
        self._since, self._model_s, self._tools_s = now, self._model.spent_s, 0.0
        return None if own_s is None else own_s * 1000

    def ran_tool(self, duration_s: float) -> None:
        self._tools_s += duration_s


def _tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


async def _turn(session: Session, model: Dictated, text: str) -> TurnFinished:
    clock = Clock(model)
    last: TurnFinished | None = None
    async with aclosing(session.submit(text)) as events:
        async for event in events:
            if isinstance(event, StepStarted):
                own_ms = clock.began()
                rss_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                _tell(own_ms=own_ms, rss_mb=rss_kb / 1024)
            elif isinstance(event, StepFinished):
                _tell(said=[call.id for call in event.message.calls])
            elif isinstance(event, CallFinished):
                clock.ran_tool(event.duration_s)
                _tell(call=event.call.id, tool=event.call.name)
            elif isinstance(event, Notice):
                print(event.text, file=sys.stderr)
            elif isinstance(event, TurnFinished):
                last = event
    assert last is not None
    return last


async def work(workspace: Path, model_file: Path, calls: int) -> int:
    """Begin the plan, or go on with it where the last session of the workspace stands."""
    paths = find_paths()
    model = Dictated(engine(model_file, paths), calls)

    def choose(settings: Settings, paths: Paths, on_redacted: Callable[[str], None] | None) -> ChosenModel:
        return ChosenModel(model, MODEL_NAME, local=True)

    resumed = bool(list_sessions(paths.sessions(workspace)))
    settings = Settings(model=MODEL_NAME, profile="generic", max_turns=10 * calls)
    session = await Sessions(settings, workspace, paths, "auto", choose).open("" if resumed else None, None, None)
    try:
        finished = await _turn(session, model, "go on" if resumed else "work through the plan")
    finally:
        await session.close()
    _tell(status=finished.status, reason=finished.reason)
    return 0 if finished.status == "finished" else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(work(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
