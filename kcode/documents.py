"""Markdown files with fields at their head (`---`, YAML, `---`): skills and commands of the user and of a repository."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from kcode.tools.truncate import plain
from kcode_sandbox.tree import content, look, rooted, scan

MAX_BYTES = 64 << 10
MAX_FILES = 500
MAX_DEPTH = 3
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_HEAD = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_FIELDS: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


@dataclass(frozen=True, slots=True)
class Document:
    """`place` is relative to the folder that was searched; `text` is what follows the fields."""

    place: str
    fields: Mapping[str, str]
    text: str


class BadDocument(ValueError):
    """The message says what is wrong with it."""


def find_documents(top: Path, folder: str, suffix: str) -> Iterator[tuple[str, Document | BadDocument]]:
    """Every file below `top`/`folder` whose path ends with `suffix`, by path; no link is followed."""
    try:
        with rooted(top) as root:
            for place in sorted(_files(root, folder, suffix))[:MAX_FILES]:
                try:
                    data = content(root, place, MAX_BYTES + 1)
                    yield place, parse(place.removeprefix(f"{folder}/"), data)
                except OSError as error:
                    yield place, BadDocument(f"it cannot be read: {error.strerror}")
                except BadDocument as error:
                    yield place, error
    except (FileNotFoundError, NotADirectoryError):
        return


def parse(place: str, data: bytes) -> Document:
    """Raises BadDocument."""
    if len(data) > MAX_BYTES:
        raise BadDocument(f"it has more than {MAX_BYTES} bytes")
    try:
        text = plain(data.decode())
    except UnicodeDecodeError as error:
        raise BadDocument(f"it is not UTF-8 text (byte {error.start})") from error
    head = _HEAD.match(text)
    if head is None:
        return Document(place, {}, text.strip())
    try:
        fields = _FIELDS.validate_python(yaml.safe_load(head[1]) or {})
    except yaml.YAMLError as error:
        raise BadDocument(f"its head is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        raise BadDocument("its head must be a table of names and values") from error
    return Document(place, {name: _text_of(value) for name, value in fields.items()}, text[head.end() :].strip())


def _text_of(value: object) -> str:
    return " ".join(str(value).split())


def _files(root: int, folder: str, suffix: str) -> Iterator[str]:
    pending = [(folder, 0)]
    while pending:
        place, depth = pending.pop()
        for found in scan(root, place):
            if found.is_folder:
                if depth < MAX_DEPTH:
                    pending.append((found.path, depth + 1))
            elif found.path.endswith(suffix) and _is_file(root, found.path):
                yield found.path


def _is_file(root: int, place: str) -> bool:
    """A link is none: it comes with a repository and may name any file."""
    found = look(root, place, hashed=False)
    return found is not None and found.kind == "file"
