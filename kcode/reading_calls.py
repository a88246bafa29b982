"""Reads a call as the model wrote it: which tool it means and with what arguments, or what to tell the model of its mistake."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from kcode.messages import ToolCall
from kcode.tools.tool import Tool


def find_tool(by_name: Mapping[str, Tool[BaseModel]], name: str) -> Tool[BaseModel] | None:
    """The tool of that name; models also write `Read`, `functions.read` or `str-replace`."""
    plain = name.strip().removeprefix("functions.").replace("-", "_").lower()
    return by_name.get(name) or by_name.get(plain)


def unknown_tool(by_name: Mapping[str, Tool[BaseModel]], name: str) -> str:
    return f"There is no tool {name!r}. The tools are: {', '.join(by_name)}."


def read_arguments(tool: Tool[BaseModel], call: ToolCall, *, cut_off: bool) -> BaseModel | str:
    """The parsed arguments, or what is wrong with them. `cut_off`: the answer ended at its length limit."""
    try:
        value = json.loads(call.arguments or "{}")
        if isinstance(value, str):
            value = json.loads(value)
    except json.JSONDecodeError as error:
        if cut_off:
            return f"The call was cut off: the answer reached its length limit within the arguments of {tool.name}. Be shorter."
        return f"The arguments of {tool.name} are not valid JSON: {error.msg} at character {error.pos}. Send one JSON object."
    if not isinstance(value, dict):
        return f"The arguments of {tool.name} must be one JSON object, not {type(value).__name__}."
    try:
        return tool.arguments.model_validate(value)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'arguments'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        )
        return f"Wrong arguments for {tool.name}: {wrong}."
