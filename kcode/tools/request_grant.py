"""`request_grant`: asks the user to open the sandbox for one host or folder. The user decides; nothing is granted by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.refusal import settle
from kcode.tools.tool import Access, Emit, Outcome

GrantKind = Literal["host", "read", "write"]


@dataclass(frozen=True, slots=True)
class Wish:
    """`target` is a host, perhaps with a port, or a folder; `reason` is the model's own word."""

    kind: GrantKind
    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    granted: bool
    text: str
    """For the model."""


Decide = Callable[[Wish], Awaitable[Decision]]


async def nobody(wish: Wish) -> Decision:
    return Decision(False, f"Not granted: {wish.target}. Nobody is there to decide; do without it.")


class RequestGrantArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: GrantKind = Field(description="host: for commands; read, write: a folder outside of the workspace.")
    target: str = Field(
        description="example.org, example.org:8443 or a folder's absolute path.",
        min_length=1,
        max_length=4096,
    )
    reason: str = Field(description="Why it is needed, for the user to read.", min_length=1, max_length=500)


class RequestGrantTool:
    name: str = "request_grant"
    access: Access = "read"
    """It changes nothing itself: the user is asked in any case."""
    arguments: type[RequestGrantArguments] = RequestGrantArguments

    def __init__(self, decide: Decide) -> None:
        self.decide = decide

    def summary(self, arguments: RequestGrantArguments) -> str:
        return f"request {arguments.kind} {arguments.target[:200]}"

    async def run(self, arguments: RequestGrantArguments, emit: Emit) -> Outcome:
        return await settle(self.ask(arguments))

    async def ask(self, arguments: RequestGrantArguments) -> Outcome:
        decision = await self.decide(Wish(arguments.kind, arguments.target.strip(), arguments.reason))
        is_refused = not decision.granted
        return Outcome(decision.text, PlainDisplay(decision.text), is_error=is_refused, is_refused=is_refused)
