"""The engine's process from kcode's side: found, started, shared, killed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from kcode.errors import EngineDied, ModelError, StartError
from kcode.messages import Message, Text, user
from kcode.model import Completed, ModelEvent, ModelRequest, PrefillProgress, Sampling, Usage
from kcode.models.local import EngineOptions, LocalModel
from kcode.paths import Paths, find_paths

FAKE = Path(__file__).parent.parent / "fakes" / "engine"
REQUEST = ModelRequest((user("hello"),), session_id="s1", prefix="p", grammar="g")


class Engines:
    """Makes clients of the fake engine and ends what they started."""

    def __init__(self, folder: Path, paths: Paths) -> None:
        self._folder = folder
        self._paths = paths
        self.models: list[LocalModel] = []

    def client(self, behaviour: str, context: int = 0) -> LocalModel:
        file = self._folder / f"{behaviour}.gguf"
        if not file.exists():
            file.write_text(behaviour)
        model = LocalModel(EngineOptions(file, context, idle_s=20.0), self._paths.runtime, self._paths.logs)
        self.models.append(model)
        return model


@pytest.fixture
async def engines(tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engines]:
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    made = Engines(tmp_path, paths)
    yield made
    for model in made.models:
        if model.process_id is not None:
            try:
                os.kill(model.process_id, signal.SIGKILL)
            except ProcessLookupError:
                continue
        await model.close()


async def ask(model: LocalModel, request: ModelRequest = REQUEST) -> list[ModelEvent]:
    async with aclosing(model.stream(request)) as events:
        return [event async for event in events]


def pid(events: list[ModelEvent]) -> int:
    last = events[-1]
    assert isinstance(last, Completed)
    found = re.match(r"pid (\d+) ", last.message.text)
    assert found
    return int(found[1])


async def test_engine_is_started_and_answers_with_token_ids(engines: Engines) -> None:
    model = engines.client("plain", context=2048)
    await model.start()
    assert (model.name, model.context_limit) == ("plain", 2048)
    assert await model.count_tokens((user("x"),)) == 7
    events = await ask(model)
    sent = '{"grammar": "g", "prefix": "p", "priority": 0, "session": "s1", "draft": ""}'
    message = Message("assistant", (Text(f"pid {pid(events)} {sent}"),), (5, 6, 7), "f00d")
    assert events[0] == PrefillProgress(5, 10, 2)
    assert events[-1] == Completed(message, "stop", Usage(10, 2, 3), 1.5)


async def test_two_clients_at_once_share_one_engine(engines: Engines) -> None:
    first, second = engines.client("slow"), engines.client("slow")
    await asyncio.gather(first.start(), second.start())
    assert pid(await ask(first)) == pid(await ask(second))
    other = engines.client("slow", context=512)
    assert pid(await ask(other)) != pid(await ask(first))


async def test_requests_at_once_start_one_engine(engines: Engines) -> None:
    model = engines.client("slow")
    answers = await asyncio.gather(ask(model), ask(model), model.start(), model.count_tokens((user("x"),)))
    started = model.process_id
    assert {pid(answers[0]), pid(answers[1])} == {started}
    assert started is not None
    os.kill(started, signal.SIGKILL)
    first, second = await asyncio.gather(ask(model), ask(model))
    assert pid(first) == pid(second) == model.process_id != started


async def test_reason_of_an_engine_that_does_not_start_is_told(engines: Engines) -> None:
    model = engines.client("broken")
    with pytest.raises(StartError) as caught:
        await model.start()
    assert str(caught.value).endswith("broken.gguf: not a GGUF file: it begins with b'brok'")
    assert "kcode_backend.server" not in str(caught.value)


async def test_reason_of_an_engine_that_fails_while_loading_is_told_to_everyone_who_waits(engines: Engines) -> None:
    first, second = engines.client("broken late"), engines.client("broken late")
    failures = await asyncio.gather(first.start(), second.start(), return_exceptions=True)
    assert [str(failure).partition(".gguf: ")[2] for failure in failures] == ["tensor x is cut off"] * 2


async def test_missing_engine_package_names_the_remedy(engines: Engines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "elsewhere" / "kcode_backend"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "server.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    with pytest.raises(StartError, match=r"No module named .*; install it with: pip install 'kcode-agent\[local\]'"):
        await engines.client("plain").start()


async def test_killed_engine_is_told_and_started_again(engines: Engines) -> None:
    model = engines.client("dies")
    with pytest.raises(
        EngineDied, match=r"ended while it was answering \(killed by SIGKILL, perhaps for memory\); send the message"
    ):
        await ask(model)
    assert pid(await ask(model)) > 0


async def test_engine_killed_between_requests_is_started_again(engines: Engines) -> None:
    model = engines.client("plain")
    first = pid(await ask(model))
    os.kill(first, signal.SIGKILL)
    assert pid(await ask(model)) != first


async def test_an_engine_on_its_way_out_is_waited_for(engines: Engines) -> None:
    model = engines.client("plain")
    model.socket.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(f"{model.socket}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    asked = asyncio.create_task(ask(model))
    await asyncio.sleep(0.5)
    assert model.process_id is None
    os.close(lock)
    assert isinstance((await asked)[-1], Completed)


async def test_refused_request_is_told(engines: Engines) -> None:
    model = engines.client("plain")
    with pytest.raises(ModelError, match="HTTP 413: max_tokens=99999 is over the context of 4096"):
        await ask(model, ModelRequest((user("x"),), sampling=Sampling(max_tokens=99999)))


async def test_prefill_is_waited_for_and_can_be_cancelled(engines: Engines) -> None:
    model = engines.client("hangs")
    task = asyncio.create_task(ask(model))
    await asyncio.sleep(0.8)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_model_file_that_is_not_there_is_named(tmp_path: Path, paths: Paths) -> None:
    with pytest.raises(StartError, match=r"cannot read the model .*none\.gguf: No such file"):
        LocalModel(EngineOptions(tmp_path / "none.gguf"), paths.runtime, paths.logs)


def test_socket_paths_are_short_wherever_home_is(tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 20) / ("deep" * 20)
    assert len(os.fsencode(find_paths({"KCODE_HOME": str(deep)}).runtime / ("0" * 16 + ".sock"))) < 100


def test_another_kind_of_cache_is_another_engine(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    plain, int8 = EngineOptions(file), EngineOptions(file, kv="int8")
    assert plain.key != int8.key
    assert int8.arguments(tmp_path)[-2:] == ["--kv", "int8"]
    assert "--kv" not in plain.arguments(tmp_path)
