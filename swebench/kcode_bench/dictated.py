"""A model server that says what it is told, when it is told: for measuring how long words take to the screen."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue

MODEL = "dictated"


class Dictation:
    """`url` is for --base-url. Pieces wait until a request is there to be answered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pieces: SimpleQueue[str | None] = SimpleQueue()

    def say(self, text: str) -> None:
        self.pieces.put(text)

    def end_answer(self) -> None:
        self.pieces.put(None)


@contextmanager
def dictated_model() -> Generator[Dictation]:
    dictation = Dictation("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(dictation.pieces))
    server.daemon_threads = True
    dictation.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield dictation
    finally:
        dictation.end_answer()
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(pieces: SimpleQueue[str | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": MODEL, "context_length": 200_000}]}).encode()
            self._begin(200, "application/json")
            self.wfile.write(body)

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not request.get("stream"):
                self._begin(404, "application/json")
                return
            self._begin(200, "text/event-stream")
            while (piece := pieces.get()) is not None:
                self._send({"choices": [{"index": 0, "delta": {"content": piece}}]})
            self._send({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, format: str, *args: object) -> None:
            return

        def _begin(self, status: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()

        def _send(self, chunk: dict[str, object]) -> None:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    return Handler
