"""The tools a session has, built in one place, and what the model is told of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from pydantic import BaseModel

from kcode.model import ChatModel, JsonSchema, ToolSpec
from kcode.tools.bash import BashTool
from kcode.tools.bash_input import BashInputTool
from kcode.tools.create import CreateTool
from kcode.tools.finish import FinishTool
from kcode.tools.git import GitTool
from kcode.tools.glob import GlobTool
from kcode.tools.grep import GrepTool
from kcode.tools.insert import InsertTool
from kcode.tools.outputs import Outputs
from kcode.tools.read import ReadTool
from kcode.tools.repo_map import RepoMapTool
from kcode.tools.request_grant import Decide, RequestGrantTool, nobody
from kcode.tools.rewrite_function import RewriteFunctionTool
from kcode.tools.run_tests import RunTestsTool
from kcode.tools.str_replace import StrReplaceTool
from kcode.tools.textfile import ReadFiles
from kcode.tools.todo import TodoTool
from kcode.tools.tool import Tool
from kcode.tools.view_image import ViewImageTool
from kcode_prompts.prompt import load
from kcode_sandbox.sandbox import Sandbox

# What a small model is told of beside the arguments that must be given.
BRIEF_ARGUMENTS = frozenset({"path", "offset", "target"})
BRIEF_SENTENCES = 2

# A tool whose `run` and `summary` take what its own `arguments` model parsed, and nothing else.
AnyTool = Tool[BaseModel]


def build_tools(sandbox: Sandbox, names: Sequence[str], model: ChatModel, decide: Decide = nobody) -> tuple[AnyTool, ...]:
    """The named tools in that order, sharing what was read and where long outputs go. Raises ValueError for an unknown name.

    `model` is the one that uses them; `decide` answers its requests to open the sandbox.
    """
    files = ReadFiles()
    outputs = Outputs(sandbox)
    tools = (
        ReadTool(sandbox, files),
        GrepTool(sandbox),
        GlobTool(sandbox),
        RepoMapTool(sandbox),
        StrReplaceTool(sandbox, files),
        CreateTool(sandbox, files),
        InsertTool(sandbox, files),
        RewriteFunctionTool(sandbox, files),
        BashTool(sandbox, outputs),
        BashInputTool(sandbox, outputs),
        RunTestsTool(sandbox),
        GitTool(sandbox, outputs),
        TodoTool(),
        ViewImageTool(sandbox, model),
        RequestGrantTool(decide),
        FinishTool(),
    )
    known = {tool.name: cast("AnyTool", tool) for tool in tools}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no tool is named {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[name] for name in names)


def spec(tool: AnyTool, *, brief: bool = False) -> ToolSpec:
    """What the model is told: the text from prompts/tools and the schema of the arguments."""
    schema = plain_schema(tool.arguments.model_json_schema())
    text = load(f"tools/{tool.name}")
    if brief:
        return ToolSpec(tool.name, " ".join(re.split(r"(?<=\.) ", text)[:BRIEF_SENTENCES]), brief_schema(schema))
    return ToolSpec(tool.name, text, schema)


def build_specs(tools: Sequence[AnyTool], *, brief: bool = False) -> tuple[ToolSpec, ...]:
    """`brief` leaves out the arguments that a small model does without; the tools still take them."""
    return tuple(spec(tool, brief=brief) for tool in tools)


def brief_schema(schema: JsonSchema) -> JsonSchema:
    """The required arguments and those of BRIEF_ARGUMENTS, by name and type alone."""
    required = cast("list[str]", schema.get("required", []))
    properties = cast("dict[str, dict[str, object]]", schema.get("properties", {}))
    kept = {
        name: {"type": node.get("type", "string")}
        for name, node in properties.items()
        if name in required or name in BRIEF_ARGUMENTS
    }
    return {"type": "object", "properties": kept, "required": required}


def plain_schema(schema: JsonSchema) -> JsonSchema:
    """Without what costs tokens and tells the model nothing.

    Titles repeat the names. `anyOf [X, null]` is X: an argument that may be null may be left out. The longest length of a
    text is checked on arrival; in a grammar it would make every sampled token of the text several times as dear.
    """
    cleaned = cast("JsonSchema", trimmed(schema))
    return {"type": "object", **{key: value for key, value in cleaned.items() if key != "type"}}


def trimmed(node: object) -> object:
    if isinstance(node, list):
        return [trimmed(item) for item in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    entries = cast("dict[str, object]", node)
    options = entries.get("anyOf")
    if isinstance(options, list) and {"type": "null"} in options:
        kept = [option for option in cast("list[object]", options) if option != {"type": "null"}]
        if len(kept) == 1 and isinstance(kept[0], dict):
            rest = {key: value for key, value in entries.items() if key not in {"anyOf", "default"}}
            entries = {**cast("dict[str, object]", kept[0]), **rest}
    cleaned: dict[str, object] = {}
    for key, value in entries.items():
        if key == "properties" and isinstance(value, dict):
            cleaned[key] = {name: trimmed(item) for name, item in cast("dict[str, object]", value).items()}
        elif key not in {"title", "maxLength"}:
            cleaned[key] = trimmed(value)
    return cleaned
