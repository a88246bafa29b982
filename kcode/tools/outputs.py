"""Where outputs go that are too long for the model: files in the sandbox's temporary folder, named in the result."""

from __future__ import annotations

import secrets

from kcode.tools.truncate import OUTPUT_CHARS, head_and_tail
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import Sandbox


class Outputs:
    """The session's saved outputs. Their folder lives and dies with the sandbox's /tmp."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.folder = f"/tmp/kcode-{secrets.token_hex(4)}"
        self.count = 0

    async def save(self, text: str, name: str) -> str | None:
        """The path of a new file with `text`; None when the sandbox has no room for it."""
        self.count += 1
        path = f"{self.folder}/{name}-{self.count}.txt"
        try:
            await self.sandbox.write(path, text.encode(errors="replace"))
        except FileError:
            return None
        return path

    async def bounded(self, text: str, name: str, limit: int = OUTPUT_CHARS) -> str:
        """`text`, or its head and tail with the path of the whole."""
        if len(text) <= limit:
            return text
        path = await self.save(text, name)
        return head_and_tail(text, limit, f"; all of it is in {path}" if path else "")
