"""The engine's process: `python -m kcode_backend.server --model FILE --socket PATH`.

The socket is open at once, before torch is imported and the model is loaded; requests wait for the load.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette

from kcode_backend.errors import BackendError
from kcode_backend.http.app import build_app
from kcode_backend.http.bind import CannotListen, listen_tcp, listen_unix
from kcode_backend.http.slot import Slot

if TYPE_CHECKING:
    from kcode_backend.serving import Serving

log = logging.getLogger(__name__)

KV_KINDS = ("f16", "int8", "int4")
"""Values of KVKind, which is not imported here: it needs torch."""
SHUTDOWN_S = 2.0
"""How long running answers may go on after SIGTERM, unless said otherwise."""
_FAREWELL_S = 10
"""After that time: what a client needs to take the error that ends its answer."""
KV_DISK_BYTES = 10 << 30


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    model: Path
    name: str
    socket: Path | None
    host: str
    port: int
    api_key: str | None
    context: int | None
    threads: int | None
    kv: str | None
    idle_timeout_s: float | None
    shutdown_timeout_s: float
    kv_dir: Path | None
    kv_disk_bytes: int
    expert_ram_bytes: int | None
    expert_lock_bytes: int
    expert_counts: Path | None


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which ends the process by the signal instead of by exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def read_options(arguments: list[str] | None) -> Options:
    """Exits with code 2 and a message for a wrong command line."""
    parser = argparse.ArgumentParser(prog="kcode_backend.server", description="Serve one model over an OpenAI-style HTTP API.")
    parser.add_argument("--model", type=Path, required=True, help="model file (GGUF)")
    parser.add_argument("--name", help="the model's id for clients; default: the file's name")
    parser.add_argument("--socket", type=Path, help="listen on this Unix socket (mode 0600)")
    parser.add_argument("--host", default="127.0.0.1", help="TCP address; other than loopback needs a key")
    parser.add_argument("--port", type=int, help="listen on this TCP port instead of a socket")
    parser.add_argument("--api-key", help="require 'Authorization: Bearer KEY'; others can read it in the list of processes")
    parser.add_argument("--api-key-env", metavar="NAME", help="the same with the key in this environment variable")
    parser.add_argument("--context", type=_positive, help="most tokens of prompt and answer together; default: the model's")
    parser.add_argument("--threads", type=_positive, help="compute threads; default: all cores")
    parser.add_argument("--kv", choices=KV_KINDS, help="numbers of the cache of keys and values; default: the engine's choice")
    parser.add_argument("--idle-timeout", type=float, help="end after so many seconds without a request")
    parser.add_argument(
        "--shutdown-timeout", type=float, default=SHUTDOWN_S, help="seconds that running answers may go on after SIGTERM"
    )
    parser.add_argument("--kv-dir", type=Path, help="keep computed contexts in this folder, so that a restart loses none")
    parser.add_argument(
        "--kv-disk-budget",
        type=_positive,
        default=KV_DISK_BYTES,
        metavar="BYTES",
        help="most bytes below --kv-dir; default: 10 GiB",
    )
    parser.add_argument(
        "--expert-ram", type=_positive, metavar="BYTES", help="most memory for experts; the others are read when they are chosen"
    )
    parser.add_argument("--expert-lock", type=_positive, default=0, metavar="BYTES", help="of it, never swapped out")
    parser.add_argument(
        "--expert-counts", type=Path, metavar="DIR", help="remember in this folder which experts are chosen often"
    )
    given = parser.parse_args(arguments)
    if (given.socket is None) == (given.port is None):
        parser.error("give either --socket PATH or --port N")
    if given.api_key_env is not None and not os.environ.get(given.api_key_env):
        parser.error(f"--api-key-env {given.api_key_env}: there is no such environment variable, or it is empty")
    return Options(
        model=given.model,
        name=given.name or given.model.name.removesuffix(".gguf"),
        socket=given.socket,
        host=given.host,
        port=given.port or 0,
        api_key=given.api_key if given.api_key_env is None else os.environ[given.api_key_env],
        context=given.context,
        threads=given.threads,
        kv=given.kv,
        idle_timeout_s=given.idle_timeout,
        shutdown_timeout_s=max(0.0, given.shutdown_timeout),
        kv_dir=given.kv_dir,
        kv_disk_bytes=given.kv_disk_budget,
        expert_ram_bytes=given.expert_ram,
        expert_lock_bytes=given.expert_lock,
        expert_counts=given.expert_counts,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"has to be at least 1, got {value}")
    return value


class EngineProcess:
    """Runs the server until it is stopped, idle for too long, or the model cannot be loaded."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._server: _Server | None = None
        # Not the loop's own executor: that one is waited for at the end, and a load that nobody needs any more is not.
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load")
        self.loading = True
        """The load is under way; its thread cannot be stopped."""
        self.failure: str | None = None
        """Why the model could not be loaded; the process ends with code 1 then."""

    async def run(self, listener: socket.socket) -> None:
        slot = Slot(self._options.name)
        limit_s = self._options.shutdown_timeout_s

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncGenerator[None]:
            load = asyncio.create_task(self._load(slot))
            watch = asyncio.create_task(self._watch_idle(slot))
            yield
            for task in (load, watch):
                task.cancel()
            await asyncio.gather(load, watch, return_exceptions=True)
            if slot.serving:
                await asyncio.to_thread(slot.serving.engine.close)

        app = build_app(slot, self._options.api_key, lifespan)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=math.ceil(limit_s) + _FAREWELL_S,
            server_header=False,
        )
        self._server = _Server(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, slot)
        await self._server.serve(sockets=[listener])

    def _signalled(self, slot: Slot) -> None:
        """The first signal lets running answers go on for a while, a second one ends them."""
        loop = asyncio.get_running_loop()
        if self._server and self._server.should_exit:
            slot.stop()
            loop.call_later(_FAREWELL_S, self._force)
            return
        if slot.active:
            log.info("ending: %d requests may go on for %g s", slot.active, self._options.shutdown_timeout_s)
        self._stop()
        loop.call_later(self._options.shutdown_timeout_s, slot.stop)

    def _stop(self) -> None:
        if self._server:
            self._server.should_exit = True

    def _force(self) -> None:
        if self._server:
            self._server.force_exit = True

    async def _load(self, slot: Slot) -> None:
        started = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            slot.fill(await loop.run_in_executor(self._loader, _load_serving, self._options))
        except (BackendError, OSError, MemoryError) as error:
            self.failure = " ".join(str(error).split()) or type(error).__name__
        except Exception:
            log.exception("loading %s failed", self._options.model)
            self.failure = f"loading {self._options.model} failed; see the traceback above"
        self.loading = False
        if self.failure:
            slot.fail(self.failure)
            self._stop()
        else:
            log.info("%s is ready after %.1f s", self._options.model, time.monotonic() - started)

    async def _watch_idle(self, slot: Slot) -> None:
        limit = self._options.idle_timeout_s
        while limit is not None:
            await asyncio.sleep(min(1.0, limit / 4))
            if slot.serving and not slot.active and time.monotonic() - slot.idle_since_s >= limit:
                log.info("no request for %g s: the engine ends", limit)
                self._stop()
                return


def _load_serving(options: Options) -> Serving:
    """On a worker thread: importing torch takes seconds, and the socket answers meanwhile."""
    from kcode_backend.weights.ahead import AheadFile

    ahead = None if options.model.is_dir() else AheadFile(options.model, options.threads, options.expert_ram_bytes)
    from kcode_backend.kernels.pages import KVKind
    from kcode_backend.kv.cache import KV_DEFAULT
    from kcode_backend.serving import DiskPlace, load_serving
    from kcode_backend.weights.expert_store import ExpertMemory

    disk = DiskPlace(options.kv_dir, options.kv_disk_bytes) if options.kv_dir else None
    kind = KVKind(options.kv) if options.kv else KV_DEFAULT
    memory = ExpertMemory(options.expert_ram_bytes, options.expert_lock_bytes, options.expert_counts)
    return load_serving(options.model, options.context, options.threads, disk, kind, ahead, memory)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 after a regular end, 1 when the model or the address cannot be used."""
    options = read_options(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        listener = (
            listen_unix(options.socket) if options.socket else listen_tcp(options.host, options.port, keyed=bool(options.api_key))
        )
    except CannotListen as error:
        print(f"kcode_backend.server: {error}", file=sys.stderr)
        return 1
    return _serve(options, listener)


def _serve(options: Options, listener: socket.socket) -> int:
    """Runs until the end; returns the exit code."""
    process = EngineProcess(options)
    try:
        asyncio.run(process.run(listener))
    finally:
        listener.close()
        if options.socket:
            options.socket.unlink(missing_ok=True)
    if process.failure:
        print(f"kcode_backend.server: {process.failure}", file=sys.stderr)
        return 1
    if process.loading:
        # Leaving the regular way would wait for the loading thread.
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
