"""`todo`: the list of what is to be done in a longer task. It stands in the conversation, where it was last written."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.tool import Access, Emit, Outcome

MAX_ITEMS = 50
MARKS = {"pending": "[ ]", "doing": "[>]", "done": "[x]"}


class TodoItem(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str = Field(description="In a few words.", min_length=1, max_length=400)
    status: Literal["pending", "doing", "done"] = Field(description="At most one is doing.")


class TodoArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    items: list[TodoItem] = Field(description="The whole list, in order.", max_length=MAX_ITEMS)


class TodoTool:
    name: str = "todo"
    access: Access = "read"
    arguments: type[TodoArguments] = TodoArguments

    def summary(self, arguments: TodoArguments) -> str:
        done = sum(item.status == "done" for item in arguments.items)
        return f"to-dos: {done} of {len(arguments.items)} done"

    async def run(self, arguments: TodoArguments, emit: Emit) -> Outcome:
        doing = sum(item.status == "doing" for item in arguments.items)
        text = "\n".join(f"{MARKS[item.status]} {item.text}" for item in arguments.items) or "The list is empty."
        if doing > 1:
            text += f"\n[{doing} are marked as doing; work on one at a time]"
        return Outcome(text, PlainDisplay(text))
