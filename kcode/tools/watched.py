"""Runs a tool and tells the model, once for each kind, what the sandbox stopped meanwhile."""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel

from kcode.events import PlainDisplay
from kcode.tools.tool import Emit, Outcome, Tool
from kcode_sandbox.violation import collecting, told


async def run_watched(tool: Tool[BaseModel], arguments: BaseModel, emit: Emit) -> Outcome:
    """As `tool.run`; whatever asked the sandbox for it, what was stopped stands at the end of the text."""
    with collecting() as violations:
        outcome = await tool.run(arguments, emit)
    if not violations:
        return outcome
    unique = tuple(dict.fromkeys(violations))
    said = "\n".join(told(unique))
    text = f"{outcome.text}\n{said}" if outcome.text else said
    display = outcome.display
    if isinstance(display, PlainDisplay):
        display = PlainDisplay(f"{display.text}\n{said}" if display.text else said)
    return replace(outcome, text=text, display=display, violations=unique)
