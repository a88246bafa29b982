"""Stands in for the engine's process: the same command line and protocol, without a model.

What is in the model file says how it behaves: "broken" ends at start as for a damaged file, "broken late" while it loads,
"slow" loads for a while, "dies" ends by SIGKILL in the middle of the first answer, "hangs" prefills for ever.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--name")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--idle-timeout", type=float, default=5.0)
    return parser.parse_args()


GIVEN = options()
BEHAVIOUR = GIVEN.model.read_text().strip()
READY_AT = time.monotonic() + {"slow": 0.5, "broken late": 60.0}.get(BEHAVIOUR, 0.0)
DIED = GIVEN.model.with_suffix(".died")


def chunk(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


class Handler(BaseHTTPRequestHandler):
    def address_string(self) -> str:
        return "socket"

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply({"status": "ok" if time.monotonic() >= READY_AT else "loading", "model": GIVEN.name})
        else:
            facts = {"context_limit": GIVEN.context, "fingerprint": "f00d", "family": "qwen"}
            self.reply({"object": "list", "data": [{"id": GIVEN.name, "object": "model", "kcode": facts}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/tokenize"):
            self.reply({"count": 7})
        elif body.get("max_tokens") == 99999:
            self.reply({"error": {"message": "max_tokens=99999 is over the context of 4096"}}, status=413)
        else:
            self.answer(body)

    def reply(self, document: object, status: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, body: dict[str, object]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(chunk(choices=[], kcode={"prefill": {"done": 5, "total": 10, "cached": 2}}))
        self.wfile.flush()
        if BEHAVIOUR == "hangs":
            time.sleep(60)
        self.wfile.write(chunk(choices=[{"delta": {"content": f"pid {os.getpid()} "}}]))
        self.wfile.flush()
        if BEHAVIOUR == "dies" and not DIED.exists():
            DIED.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.wfile.write(chunk(choices=[{"delta": {"content": json.dumps(body["kcode"])}, "finish_reason": "stop"}]))
        extra = {"token_ids": [5, 6, 7], "fingerprint": "f00d", "prefill_s": 0.1, "decode_s": 1.5}
        usage = {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
        self.wfile.write(chunk(choices=[], usage=usage, kcode=extra))
        self.wfile.write(b"data: [DONE]\n\n")


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def fail() -> None:
    """End as the engine does when it finds out while loading, with the socket open."""
    print(f"kcode_backend.server: {GIVEN.model}: tensor x is cut off", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> int:
    if BEHAVIOUR == "broken":
        print(f"kcode_backend.server: {GIVEN.model}: not a GGUF file: it begins with b'brok'", file=sys.stderr)
        return 1
    print("fake engine is up", file=sys.stderr)
    threading.Timer(GIVEN.idle_timeout, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    if BEHAVIOUR == "broken late":
        threading.Timer(0.4, fail).start()
    with Server(GIVEN.socket, Handler) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
