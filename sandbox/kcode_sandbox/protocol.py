"""Frames between the client outside and the worker inside: 8 bytes of lengths, a JSON head, a binary body.

Both sides bound what they accept. A head holds only JSON scalars, lists and objects; anything large is a body.
The worker runs as the same user as the model's commands, so the client treats every frame as untrusted data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import cast

from kcode_sandbox.errors import SandboxDiedError

LENGTHS = struct.Struct(">II")
MAX_HEAD_BYTES = 1 << 20
MAX_BODY_BYTES = 192 << 20

Head = dict[str, object]


class ProtocolError(SandboxDiedError):
    """A frame that the other side should never have sent."""


def encode(head: Mapping[str, object], body: bytes = b"") -> bytes:
    text = json.dumps(head, ensure_ascii=True, separators=(",", ":")).encode()
    check_lengths(len(text), len(body))
    return LENGTHS.pack(len(text), len(body)) + text + body


def check_lengths(head_bytes: int, body_bytes: int) -> None:
    if head_bytes > MAX_HEAD_BYTES or body_bytes > MAX_BODY_BYTES:
        raise ProtocolError(f"frame of {head_bytes} + {body_bytes} bytes; at most {MAX_HEAD_BYTES} + {MAX_BODY_BYTES}")


def parse_head(text: bytes) -> Head:
    try:
        head: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"head is not JSON: {text[:80]!r}") from error
    if not isinstance(head, dict):
        raise ProtocolError(f"head is not an object: {text[:80]!r}")
    return cast(Head, head)


class Decoder:
    """Turns a byte stream into frames; keeps what is incomplete."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Head, bytes]]:
        self._pending += data
        while len(self._pending) >= LENGTHS.size:
            head_bytes, body_bytes = LENGTHS.unpack_from(self._pending)
            check_lengths(head_bytes, body_bytes)
            end = LENGTHS.size + head_bytes + body_bytes
            if len(self._pending) < end:
                return
            head = parse_head(bytes(self._pending[LENGTHS.size : LENGTHS.size + head_bytes]))
            body = bytes(self._pending[LENGTHS.size + head_bytes : end])
            del self._pending[:end]
            yield head, body


def text_of(head: Mapping[str, object], key: str) -> str:
    value = head.get(key)
    if not isinstance(value, str):
        raise ProtocolError(f"{key} is {type(value).__name__}, not text")
    return value


def integer_of(head: Mapping[str, object], key: str) -> int:
    value = head.get(key)
    if not isinstance(value, int):
        raise ProtocolError(f"{key} is {type(value).__name__}, not an integer")
    return int(value)


def number_of(head: Mapping[str, object], key: str) -> float:
    value = head.get(key)
    if not isinstance(value, int | float):
        raise ProtocolError(f"{key} is {type(value).__name__}, not a number")
    return float(value)


def flag_of(head: Mapping[str, object], key: str) -> bool:
    value = head.get(key, False)
    if not isinstance(value, bool):
        raise ProtocolError(f"{key} is {type(value).__name__}, not a boolean")
    return value


def object_of(head: Mapping[str, object], key: str) -> Head:
    value = head.get(key, {})
    if not isinstance(value, dict):
        raise ProtocolError(f"{key} is {type(value).__name__}, not an object")
    return cast(Head, value)


def texts_of(head: Mapping[str, object], key: str) -> list[str]:
    value = head.get(key, [])
    if not isinstance(value, list):
        raise ProtocolError(f"{key} is {type(value).__name__}, not a list")
    items = cast(list[object], value)
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) != len(items):
        raise ProtocolError(f"{key} holds something other than text")
    return texts


def environment_of(head: Mapping[str, object], key: str) -> dict[str, str]:
    return {name: text_of(object_of(head, key), name) for name in object_of(head, key)}
