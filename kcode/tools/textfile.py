"""Text files as the tools see them: LF text inside, the file's own bytes outside."""

from __future__ import annotations

import codecs
import hashlib
import re
from bisect import bisect_left
from dataclasses import dataclass, field, replace

from kcode.tools.refusal import Refusal
from kcode.tools.truncate import MAX_FILE_BYTES
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import FileStat, Sandbox

# Where Python and many editors look for the name of a file's encoding: its first two lines.
DECLARED = re.compile(rb"^[ \t\f]*(?:#|//|/\*|<!--|\").*?coding[:=][ \t]*([-\w.]+)", re.MULTILINE)
MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
UTF_32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


@dataclass(frozen=True, slots=True)
class TextFile:
    """A decoded file. `text` has LF line ends; `crlf` holds the offsets in `text` of those LFs that are CRLF on disk.

    Encoding again gives the same bytes: line ends may be mixed, and what is in no known encoding is kept as latin-1.
    `mark` is the byte order mark. `ends_cr` says that every line ends with a CR alone.
    """

    text: str
    encoding: str
    mark: bytes
    crlf: tuple[int, ...]
    ends_cr: bool = False

    def encode(self) -> bytes:
        """The bytes on disk."""
        pieces: list[str] = []
        last = 0
        for offset in self.crlf:
            pieces += (self.text[last:offset], "\r")
            last = offset
        raw = "".join(pieces) + self.text[last:]
        if self.ends_cr:
            raw = raw.replace("\n", "\r")
        return self.mark + raw.encode(self.encoding)

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
        check_holds(text, self.encoding)
        return replace(self, text=text, crlf=tuple(crlf))


def check_holds(text: str, encoding: str) -> None:
    """Refuses text that the encoding cannot hold."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError as error:
        bad = text[error.start]
        advice = "write it with an escape or in plain letters"
        raise Refusal(f"the file is {encoding} and cannot hold {bad!r}; {advice}") from error


def decode(data: bytes, path: str) -> TextFile:
    """Refuses binary data."""
    for mark, encoding in MARKS:
        if data.startswith(mark) and not data.startswith(UTF_32_MARKS):
            file = decoded(data[len(mark) :], encoding, mark)
            if file is not None:
                return file
    if b"\0" in data[: 1 << 16]:
        raise Refusal(f"{path} is a binary file ({len(data)} bytes); inspect it with bash (file, xxd, strings)")
    for encoding in ("utf-8", *declared(data), *windows_encoding(data)):
        file = decoded(data, encoding, b"")
        if file is not None:
            return file
    return with_lf(data.decode("latin-1"), "latin-1", b"")


def decoded(data: bytes, encoding: str, mark: bytes) -> TextFile | None:
    """None when the bytes are not in this encoding or would not come back as they are."""
    try:
        raw = data.decode(encoding)
        if encoding == "utf-8" or raw.encode(encoding) == data:
            return with_lf(raw, encoding, mark)
    except (UnicodeError, LookupError):
        return None
    return None


def declared(data: bytes) -> tuple[str, ...]:
    """The text encoding that the file itself names in its first two lines."""
    head = b"\n".join(data[:1000].split(b"\n", 2)[:2])
    found = DECLARED.search(head)
    if found is None:
        return ()
    name = found.group(1).decode("ascii")
    try:
        return (codecs.lookup(name).name,) if "a".encode(name) == b"a" else ()
    except LookupError:
        return ()


def windows_encoding(data: bytes) -> tuple[str, ...]:
    """Western Windows text has its quotes and dashes where latin-1 has control characters."""
    return ("cp1252",) if any(0x80 <= byte <= 0x9F for byte in data) else ()


def with_lf(raw: str, encoding: str, mark: bytes) -> TextFile:
    if "\r" in raw and "\n" not in raw:
        return TextFile(raw.replace("\r", "\n"), encoding, mark, (), ends_cr=True)
    crlf: list[int] = []
    position = raw.find("\r\n")
    while position >= 0:
        crlf.append(position - len(crlf))
        position = raw.find("\r\n", position + 2)
    return TextFile(raw.replace("\r\n", "\n"), encoding, mark, tuple(crlf))


def encode_new(text: str) -> bytes:
    """The bytes of a file that did not exist: UTF-8, exactly the text given."""
    check_holds(text, "utf-8")
    return text.encode()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(slots=True)
class ReadFiles:
    """What the model has seen: the real path of each file it read or wrote, and the content's sha256 at that time.

    A file is glimpsed when a refused edit showed the lines where it belongs: enough to edit there, not to replace the whole.
    """

    seen: dict[str, str] = field(default_factory=dict[str, str])
    glimpsed: dict[str, str] = field(default_factory=dict[str, str])

    def note(self, path: str, sha256: str) -> None:
        self.seen[path] = sha256

    def forget(self) -> None:
        """After the tree was brought back to a snapshot: every file counts as never seen."""
        self.seen.clear()
        self.glimpsed.clear()

    def knows(self, path: str) -> bool:
        return path in self.seen

    def glimpse(self, path: str, sha256: str) -> None:
        self.glimpsed[path] = sha256

    def is_stale(self, path: str, sha256: str) -> bool:
        """For an edit in one place."""
        return self.seen.get(path, sha256) != sha256 and self.glimpsed.get(path) != sha256

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
