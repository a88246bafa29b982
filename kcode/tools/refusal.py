"""How a tool says no: a Refusal inside the tool becomes an Outcome at its edge."""

from __future__ import annotations

from collections.abc import Awaitable

from kcode.errors import SandboxFailed
from kcode.events import PlainDisplay
from kcode.tools.tool import Outcome
from kcode_sandbox.errors import FileError, SandboxDiedError

ADVICE = {
    "ENOENT": "{path} does not exist; find the right path with glob",
    "ENOTDIR": "{path}: a part of this path is a file, not a folder",
    "EACCES": "{path} may not be accessed from inside the sandbox",
    "EPERM": "{path} may not be changed from inside the sandbox",
    "EROFS": "{path} is read-only inside the sandbox",
    "ELOOP": "{path} is a loop of symbolic links",
    "ENOSPC": "no space left while writing {path}",
    "STALE": "{path} changed while it was being edited; read it again",
}


class Refusal(Exception):
    """What the model asked for cannot be done; the message says why and what to try."""


async def settle(work: Awaitable[Outcome]) -> Outcome:
    """The outcome of `work`; what the model did wrong becomes a result, a dead sandbox becomes SandboxFailed."""
    try:
        return await work
    except Refusal as refusal:
        return failed(str(refusal))
    except FileError as error:
        advice = ADVICE.get(error.code)
        return failed(advice.format(path=error.path) if advice else f"{error.path}: {error}")
    except SandboxDiedError as error:
        raise SandboxFailed(str(error)) from error


def failed(text: str) -> Outcome:
    return Outcome(f"Error: {text}", PlainDisplay(text), is_error=True)
