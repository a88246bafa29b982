"""A server's tool as one of kcode's own: the same approval, the same caps, its schema in the grammar."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from kcode.events import PlainDisplay
from kcode.mcp.connection import Connection, ServerFailed
from kcode.messages import Image
from kcode.model import JsonSchema, ToolSpec
from kcode.tools.outputs import Outputs
from kcode.tools.tool import Access, Emit, Outcome
from kcode.tools.truncate import head_and_tail, plain

if TYPE_CHECKING:
    from mcp.types import CallToolResult
    from mcp.types import Tool as RemoteTool

DESCRIPTION_CHARS = 2000
MAX_IMAGES = 4
MAX_IMAGE_CHARS = 8 << 20


class RemoteArguments(BaseModel):
    """Whatever the server's own schema allows; it is checked against that before it is sent."""

    model_config = ConfigDict(extra="allow")


class McpTool:
    arguments: type[RemoteArguments] = RemoteArguments

    def __init__(self, connection: Connection, remote: RemoteTool, outputs: Outputs) -> None:
        self.name = f"mcp__{connection.name}__{remote.name}"
        self.access: Access = connection.config.access
        self.schema: JsonSchema = {"type": "object", **remote.input_schema}
        self._connection = connection
        self._remote = remote
        self._outputs = outputs

    @property
    def spec(self) -> ToolSpec:
        text = head_and_tail((self._remote.description or self._remote.name).strip(), DESCRIPTION_CHARS)
        return ToolSpec(self.name, text, self.schema)

    def summary(self, arguments: RemoteArguments) -> str:
        given = json.dumps(arguments.model_dump(), ensure_ascii=False)
        return f"{self._connection.name}: {self._remote.name} {given if len(given) <= 150 else given[:149] + '…'}"

    async def run(self, arguments: RemoteArguments, emit: Emit) -> Outcome:
        from jsonschema import Draft202012Validator

        given = arguments.model_dump()
        wrong = next(iter(Draft202012Validator(dict(self.schema)).iter_errors(given)), None)
        if wrong is not None:
            place = ".".join(map(str, wrong.absolute_path)) or "arguments"
            return _failed(f"Wrong arguments for {self.name}: {place}: {wrong.message[:300]}")
        try:
            result = await self._connection.call(self._remote.name, given)
        except ServerFailed as error:
            return _failed(f"Error: {self.name}: {error}")
        text, images = _content(result)
        bounded = await self._outputs.bounded(text, f"mcp-{self._connection.name}")
        return Outcome(bounded, PlainDisplay(bounded), is_error=result.is_error, images=images)


def _failed(text: str) -> Outcome:
    return Outcome(text, PlainDisplay(text), is_error=True)


def _content(result: CallToolResult) -> tuple[str, tuple[Image, ...]]:
    """What of a result the model gets; what it does not get is named."""
    from mcp.types import EmbeddedResource, ImageContent, ResourceLink, TextContent, TextResourceContents

    parts: list[str] = []
    images: list[Image] = []
    for block in result.content:
        if isinstance(block, TextContent):
            parts.append(block.text)
        elif isinstance(block, ImageContent) and len(images) < MAX_IMAGES and len(block.data) <= MAX_IMAGE_CHARS:
            images.append(Image(block.mime_type, block.data))
            parts.append(f"[picture {len(images)}, {block.mime_type}]")
        elif isinstance(block, EmbeddedResource) and isinstance(block.resource, TextResourceContents):
            parts.append(block.resource.text)
        elif isinstance(block, ResourceLink):
            parts.append(f"[resource {block.uri}]")
        else:
            parts.append(f"[{block.type}, left out]")
    if not parts and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    return plain("\n".join(parts)) or "[no output]", tuple(images)
