"""Text files as the tools see them: LF text inside, the file's own bytes outside."""

from __future__ import annotations

import codecs
import hashlib
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Literal

from kcode.tools.refusal import Refusal
from kcode.tools.truncate import MAX_FILE_BYTES
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import FileStat, Sandbox

Encoding = Literal["utf-8", "latin-1"]


@dataclass(frozen=True, slots=True)
class TextFile:
    """A decoded file. `text` has LF line ends; `crlf` holds the offsets in `text` of those LFs that are CRLF on disk.

    Encoding again gives the same bytes: line ends may be mixed, and what is not UTF-8 is kept as latin-1.
    """

    text: str
    encoding: Encoding
    bom: bool
    crlf: tuple[int, ...]

    def encode(self) -> bytes:
        """The bytes on disk."""
        pieces: list[str] = []
        last = 0
        for offset in self.crlf:
            pieces += (self.text[last:offset], "\r")
            last = offset
        raw = "".join(pieces) + self.text[last:]
        return (codecs.BOM_UTF8 if self.bom else b"") + raw.encode(self.encoding)

    def replaced(self, spans: list[tuple[int, int, str]]) -> TextFile:
        """With each (start, end, new text) put in place; the spans are in order and do not overlap.

        New lines end the way most lines of the file do. Refuses characters that the file's encoding cannot hold.
        """
        newlines = self.text.count("\n")
        use_crlf = len(self.crlf) * 2 > newlines
        pieces: list[str] = []
        crlf: list[int] = []
        length, last = 0, 0
        for start, end, new in [*spans, (len(self.text), len(self.text), "")]:
            new = new.replace("\r\n", "\n")
            kept = self.crlf[bisect_left(self.crlf, last) : bisect_left(self.crlf, start)]
            crlf += [offset - last + length for offset in kept]
            pieces += (self.text[last:start], new)
            length += start - last
            if use_crlf:
                crlf += [length + offset for offset, char in enumerate(new) if char == "\n"]
            length += len(new)
            last = end
        text = "".join(pieces)
        if self.encoding == "latin-1" and (bad := next((char for char in text if ord(char) > 255), None)) is not None:
            raise Refusal(f"the file is latin-1 and cannot hold {bad!r}; write it with an escape or in plain letters")
        return TextFile(text, self.encoding, self.bom, tuple(crlf))


def decode(data: bytes, path: str) -> TextFile:
    """Refuses binary data."""
    if b"\0" in data[: 1 << 16]:
        raise Refusal(f"{path} is a binary file ({len(data)} bytes); inspect it with bash (file, xxd, strings)")
    bom = data.startswith(codecs.BOM_UTF8)
    body = data[len(codecs.BOM_UTF8) :] if bom else data
    encoding: Encoding = "utf-8"
    try:
        raw = body.decode("utf-8")
    except UnicodeDecodeError:
        encoding = "latin-1"
        raw = body.decode("latin-1")
    crlf: list[int] = []
    position = raw.find("\r\n")
    while position >= 0:
        crlf.append(position - len(crlf))
        position = raw.find("\r\n", position + 2)
    return TextFile(raw.replace("\r\n", "\n"), encoding, bom, tuple(crlf))


def encode_new(text: str) -> bytes:
    """The bytes of a file that did not exist: UTF-8, exactly the text given."""
    return text.encode("utf-8", errors="surrogatepass")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(slots=True)
class ReadFiles:
    """What the model has seen: the real path of each file it read or wrote, and the content's sha256 at that time."""

    seen: dict[str, str] = field(default_factory=dict[str, str])

    def note(self, path: str, sha256: str) -> None:
        self.seen[path] = sha256

    def forget(self) -> None:
        """After the tree was brought back to a snapshot: every file counts as never seen."""
        self.seen.clear()

    def knows(self, path: str) -> bool:
        return path in self.seen

    def check(self, path: str, sha256: str, shown: str) -> None:
        """Refuses when `path` was seen with other content; a file never seen passes."""
        if self.seen.get(path, sha256) != sha256:
            raise Refusal(f"{shown} changed since it was read; read it again before editing")


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file read whole. `path` is the real path inside the sandbox, `shown` is how the workspace calls it."""

    path: str
    shown: str
    sha256: str
    content: TextFile


async def open_text(sandbox: Sandbox, path: str) -> OpenFile:
    """Refuses folders, devices, binary files and files over 10 MB."""
    stat = await sandbox.stat(path)
    if stat.kind == "dir":
        raise Refusal(f"{path} is a folder; name a file in it")
    if stat.kind != "file":
        raise Refusal(f"{path} is not a regular file")
    if stat.size > MAX_FILE_BYTES:
        raise Refusal(
            f"{path} has {stat.size / (1 << 20):.1f} MB, more than {MAX_FILE_BYTES >> 20} MB; "
            "look at parts of it with bash (head, sed -n, grep) or change it with a script"
        )
    content = await sandbox.read(path, max_bytes=MAX_FILE_BYTES)
    return OpenFile(stat.path, shown_path(sandbox, stat, path), digest(content.data), decode(content.data, path))


def shown_path(sandbox: Sandbox, stat: FileStat, asked: str) -> str:
    """Relative to the workspace when the real path lies in it, else as it was asked for."""
    workspace = str(sandbox.policy.workspace)
    if stat.path.startswith(workspace + "/"):
        return stat.path[len(workspace) + 1 :]
    return asked


def changed_paths(sandbox: Sandbox, path: str) -> tuple[str, ...]:
    """What an Outcome names as changed for the real path: nothing for files outside the workspace."""
    workspace = str(sandbox.policy.workspace)
    return (path[len(workspace) + 1 :],) if path.startswith(workspace + "/") else ()


async def exists(sandbox: Sandbox, path: str) -> FileStat | None:
    try:
        return await sandbox.stat(path)
    except FileError as error:
        if error.code == "ENOENT":
            return None
        raise
