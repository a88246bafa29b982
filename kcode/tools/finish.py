"""`finish`: the model says it is done and what it did."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.tool import Access, Emit, Outcome


class FinishArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    summary: str = Field(description="What was wrong, what was changed, how it was checked.", min_length=1, max_length=4000)


class FinishTool:
    name: str = "finish"
    access: Access = "read"
    arguments: type[FinishArguments] = FinishArguments

    def summary(self, arguments: FinishArguments) -> str:
        return "finish"

    async def run(self, arguments: FinishArguments, emit: Emit) -> Outcome:
        return Outcome(arguments.summary, PlainDisplay(arguments.summary), ends_turn=True)
