"""The engine's process: how it starts, who may talk to it, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from tests.backend.server.conftest import EngineServer

    Start = Callable[..., EngineServer]

END_S = 180


def last_line(server: EngineServer) -> str:
    return server.log.read_text().splitlines()[-1]


def test_killed_engine_is_replaced_and_a_living_one_is_not(start: Start, tiny_file: Path) -> None:
    first = start(tiny_file)
    first.wait_ready()
    assert stat.S_IMODE(first.socket.stat().st_mode) == 0o600
    ids = first.ask("hello")["kcode"]["token_ids"]

    rival = start(tiny_file)
    assert rival.process.wait(END_S) == 1
    assert last_line(rival).endswith(f"an engine already listens on {first.socket}; stop it or use another --socket")

    first.process.send_signal(signal.SIGKILL)
    first.process.wait(END_S)
    assert first.socket.exists()
    second = start(tiny_file, "--idle-timeout", "2")
    second.wait_ready()
    assert second.ask("hello")["kcode"]["token_ids"] == ids
    # Nobody asks any more, and asking for the health is no use of the model.
    assert second.process.wait(END_S) == 0
    assert not second.socket.exists()


def test_tcp_needs_its_key_and_sigterm_ends_cleanly(start: Start, tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("SOME_KEY", "secret")
    server = start(tiny_file, "--port", str(port), "--api-key-env", "SOME_KEY")
    url = f"http://127.0.0.1:{port}/v1/models"
    while True:
        assert server.process.poll() is None, server.log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    with httpx.Client(timeout=END_S) as client:
        assert client.get(url).status_code == 401
        assert client.get(url, headers={"Authorization": "Bearer wrong"}).status_code == 401
        # Waits for the model.
        assert client.get(url, headers={"Authorization": "Bearer secret"}).json()["object"] == "list"
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(END_S) == 0


def test_sigterm_during_the_load_ends_at_once(start: Start, tiny_file: Path) -> None:
    server = start(tiny_file)
    while '"status":"loading"' not in health(server):
        time.sleep(0.01)
    server.process.terminate()
    assert server.process.wait(END_S) == 0
    assert not server.socket.exists()
    assert "is ready" not in server.log.read_text()


def health(server: EngineServer) -> str:
    """The raw answer, empty while nobody listens."""
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex(str(server.socket)):
            return ""
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        return client.makefile().read()


def test_what_cannot_work_ends_with_one_line(start: Start, tmp_path: Path, tiny_file: Path) -> None:
    open_host = start(tiny_file, "--port", "1", "--host", "0.0.0.0")
    assert open_host.process.wait(END_S) == 1
    assert last_line(open_host).endswith("give --api-key KEY or use 127.0.0.1")

    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_file.read_bytes()[:5000])
    server = start(broken, name="broken.sock")
    assert server.process.wait(END_S) == 1
    assert str(broken) in last_line(server)
    assert "Traceback" not in server.log.read_text()
