"""What a tool is. One tool per file in this folder; schema, permission and display derive from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel

from kcode.events import Display
from kcode.messages import Image
from kcode.model import Usage
from kcode_sandbox.violation import Violation

Access = Literal["read", "write", "execute", "delegate"]
"""What a call may do; "delegate" is to let another agent work, which holds to the rules of the session itself."""
Emit = Callable[[str], None]
ArgumentsT = TypeVar("ArgumentsT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished call: `text` is what the model reads (bounded), `display` what a person sees.

    `ends_turn` is true only for a successful `finish`. `changed` names the files the call is known to have changed,
    relative to the workspace. `is_refused` says that the call did not run because a person or a rule did not let it.
    `images` are shown to the model after the text. `violations` are what the sandbox stopped of it; the text says so already.
    `usage` is what the call itself used of the model.
    """

    text: str
    display: Display
    is_error: bool = False
    ends_turn: bool = False
    changed: tuple[str, ...] = ()
    is_refused: bool = False
    images: tuple[Image, ...] = ()
    violations: tuple[Violation, ...] = ()
    usage: Usage = field(default_factory=Usage)


class Tool(Protocol, Generic[ArgumentsT]):
    """A tool. Its description is prompts/tools/NAME.md; its JSON schema comes from `arguments`.

    `run` returns an Outcome for whatever the model did wrong and raises only for our own bugs and for
    SandboxFailed. It is cancelled by asyncio cancellation and then leaves no process behind. `emit` takes live output.
    """

    name: str
    access: Access
    arguments: type[ArgumentsT]

    def summary(self, arguments: ArgumentsT) -> str: ...

    async def run(self, arguments: ArgumentsT, emit: Emit) -> Outcome: ...


@runtime_checkable
class Replacing(Protocol):
    """A tool whose arguments do not show what they replace: a person who is asked sees it beside them."""

    async def before(self, arguments: Any) -> str:
        """The text that the call is going to replace, "" when there is none or it cannot be told."""
        ...


async def replaced_by(tool: object, arguments: BaseModel) -> str:
    """What a call of the tool replaces, "" for tools that do not tell."""
    return await tool.before(arguments) if isinstance(tool, Replacing) else ""
