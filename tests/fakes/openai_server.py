"""A real HTTP server that speaks the OpenAI protocol and misbehaves on order."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with an error status."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """Send these lines as they are, with a pause before each; `cut` drops the connection without a proper end."""

    lines: tuple[str, ...]
    pause_s: float = 0.0
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """Drop the connection without a word."""


Behaviour = Refuse | Stream | Hang


def data(**chunk: object) -> str:
    return "data: " + json.dumps(chunk)


def delta(finish: str | None = None, **fields: object) -> str:
    return data(choices=[{"index": 0, "delta": fields, "finish_reason": finish}])


def said(text: str, finish: str = "stop") -> Stream:
    """A whole, proper answer."""
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}}
    return Stream(
        (delta(role="assistant", content=""), delta(content=text), delta(finish), data(choices=[], usage=usage), "data: [DONE]")
    )


@dataclass(slots=True)
class Seen:
    """What the server was asked, in order; `models` is what GET /models says (None: 404)."""

    behaviours: list[Behaviour]
    models: object
    bodies: list[dict[str, object]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    url: str = ""


def _handler(seen: Seen) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.keys.append(self.headers.get("Authorization", ""))
            if seen.models is None:
                self._whole(404, "{}", ())
            elif isinstance(seen.models, Refuse):
                self._whole(seen.models.status, seen.models.body, ())
            else:
                self._whole(200, json.dumps(seen.models), ())

        def do_POST(self) -> None:
            seen.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            behaviour = seen.behaviours.pop(0)
            if isinstance(behaviour, Refuse):
                self._whole(behaviour.status, behaviour.body, behaviour.headers)
            elif isinstance(behaviour, Stream):
                self._stream(behaviour)
            else:
                self.close_connection = True

        def _whole(self, status: int, body: str, headers: tuple[tuple[str, str], ...]) -> None:
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", str(len(body.encode())))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def _stream(self, stream: Stream) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for line in stream.lines:
                    time.sleep(stream.pause_s)
                    piece = f"{line}\n\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    self.wfile.flush()
                if not stream.cut:
                    self.wfile.write(b"0\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                seen.behaviours.append(Hang())

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def serving(*behaviours: Behaviour, models: object = None) -> Iterator[Seen]:
    """A server on a free port of this machine that behaves once as each of `behaviours`."""
    seen = Seen(list(behaviours), models)
    server = _Server(("127.0.0.1", 0), _handler(seen))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
