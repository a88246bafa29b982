"""A tool server written by hand after the protocol: it starts at once, and holds the client to what is on the wire."""

from __future__ import annotations

import json
import os
import sys

ADD = {
    "name": "add",
    "description": "Add two numbers.",
    "inputSchema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
LEAVE = {"name": "leave", "description": "End the server in the middle of a call.", "inputSchema": {"type": "object"}}


def answer(method: str, parameters: dict[str, object]) -> dict[str, object]:
    if method == "initialize":
        about = {"name": "plain", "version": "1"}
        return {"protocolVersion": parameters["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        return {"tools": [ADD, LEAVE]}
    if method == "tools/call" and parameters["name"] == "add":
        given = parameters["arguments"]
        assert isinstance(given, dict)
        return {"content": [{"type": "text", "text": str(given["a"] + given["b"])}]}
    if method == "tools/call":
        os._exit(3)
    raise ValueError(method)


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        try:
            reply: dict[str, object] = {"result": answer(message["method"], message.get("params", {}))}
        except ValueError as error:
            reply = {"error": {"code": -32601, "message": f"unknown method {error}"}}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **reply}), flush=True)
    if "stay" in sys.argv:
        while True:
            sys.stdin.read()


if __name__ == "__main__":
    main()
