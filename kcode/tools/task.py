"""`task`: lets a sub-agent do a part of the work. Who the sub-agents are and where they work is not known here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.tool import Access, Emit, Outcome

NESTED = "A sub-agent has no sub-agents. Do this part of the work yourself."


class TaskArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    description: str = Field(description="In three to eight words, for the user.", min_length=1, max_length=120)
    prompt: str = Field(
        description="The whole task, and what to report.",
        min_length=1,
        max_length=50_000,
    )
    fork: bool = Field(default=True, description="Whether it knows this conversation, or only the prompt.")


Delegate = Callable[[TaskArguments, Emit], Awaitable[Outcome]]


async def nested(arguments: TaskArguments, emit: Emit) -> Outcome:
    """What a sub-agent is told that asks for one itself."""
    return Outcome(NESTED, PlainDisplay(NESTED), is_error=True)


class TaskTool:
    name: str = "task"
    access: Access = "delegate"
    arguments: type[TaskArguments] = TaskArguments

    def __init__(self, delegate: Delegate) -> None:
        self.delegate = delegate

    def summary(self, arguments: TaskArguments) -> str:
        return f"task: {' '.join(arguments.description.split())}"

    async def run(self, arguments: TaskArguments, emit: Emit) -> Outcome:
        return await self.delegate(arguments, emit)
