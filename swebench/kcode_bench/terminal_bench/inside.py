"""The process in a view that holds its sandbox: a line of JSON in, one out, see view.py."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.errors import FileError, SandboxError
from kcode_sandbox.policy import Limits, Policy, parse_network
from kcode_sandbox.sandbox import Sandbox

MAX_OUTPUT_BYTES = 16 << 20


class Asked(BaseModel):
    argv: list[str]
    timeout_s: float
    cwd: str
    environment: dict[str, str]
    mixed: bool


class Given(BaseModel):
    workspace: Path
    writable: list[Path]
    readable: list[Path]
    environment: dict[str, str]
    network: str

    def policy(self) -> Policy:
        network, hosts = parse_network(self.network)
        return Policy(
            self.workspace,
            network=network,
            hosts=hosts,
            readable=tuple(self.readable),
            writable=tuple(self.writable),
            environment=tuple(sorted(self.environment.items())),
            limits=Limits(processes=1024, output_bytes=2 * MAX_OUTPUT_BYTES),
        )


async def serve() -> None:
    """Until standard input ends."""
    try:
        sandbox = open_sandbox(Given.model_validate_json(await _line()).policy())
        await sandbox.start()
    except (SandboxError, ValidationError, ValueError) as error:
        _say({"error": " ".join(str(error).split())})
        return
    _say({})
    try:
        while line := await _line():
            try:
                _say(await _exec(sandbox, Asked.model_validate_json(line)))
            except FileError as error:
                _say({"exit_code": 127, "stdout": "", "stderr": base64.b64encode(str(error).encode()).decode()})
            except SandboxError as error:
                _say({"error": str(error)})
    finally:
        await sandbox.close()


async def _exec(sandbox: Sandbox, asked: Asked) -> Mapping[str, object]:
    done = await sandbox.exec(
        asked.argv,
        timeout_s=asked.timeout_s,
        cwd=asked.cwd,
        environment=asked.environment,
        separate_stderr=not asked.mixed,
        max_output=MAX_OUTPUT_BYTES,
    )
    stdout, stderr = (base64.b64encode(data).decode() for data in (done.output, done.stderr))
    return {"exit_code": done.exit_code, "stdout": stdout, "stderr": stderr}


async def _line() -> bytes:
    return await asyncio.to_thread(sys.stdin.buffer.readline)


def _say(answer: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve())
