"""What a client sends as a prompt, as one message."""

from __future__ import annotations

from collections.abc import Sequence

from acp.schema import (
    AudioContentBlock,
    EmbeddedResourceContentBlock,
    ImageContentBlock,
    ResourceContentBlock,
    TextContentBlock,
    TextResourceContents,
)

Block = TextContentBlock | ImageContentBlock | AudioContentBlock | ResourceContentBlock | EmbeddedResourceContentBlock


def prompt_text(blocks: Sequence[Block]) -> str:
    """Links by their address, embedded files with their text; what cannot be said in words is named as left out."""
    parts: list[str] = []
    for block in blocks:
        match block:
            case TextContentBlock(text=text):
                parts.append(text)
            case ResourceContentBlock(uri=uri):
                parts.append(f"@{uri.removeprefix('file://')}")
            case EmbeddedResourceContentBlock(resource=TextResourceContents(uri=uri, text=text)):
                parts.append(f'\n<file path="{uri.removeprefix("file://")}">\n{text}\n</file>\n')
            case _:
                parts.append(f"[{block.type}, left out]")
    return "".join(parts)
