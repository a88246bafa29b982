"""One edit of the corpus: a real place in a real file, a real change of it, and how the call was got wrong."""

from __future__ import annotations

import random
import re
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import kcode

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{2,}")
STDLIB = (
    *("argparse", "ast", "bdb", "calendar", "cmd", "codeop", "configparser", "contextlib", "csv", "dataclasses", "difflib"),
    *("doctest", "fileinput", "fnmatch", "fractions", "functools", "gettext", "glob", "gzip", "heapq", "inspect", "ipaddress"),
    *("linecache", "locale", "mailbox", "mimetypes", "netrc", "optparse", "pathlib", "pdb", "pickle", "platform", "plistlib"),
    *("pprint", "profile", "queue", "quopri", "random", "sched", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket"),
    *("statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "trace"),
    *("traceback", "turtle", "types", "typing", "unittest/case", "unittest/mock", "uuid", "warnings", "weakref", "zipfile"),
    *("json/decoder", "json/encoder", "email/message", "email/header", "logging/config", "http/client", "http/cookies"),
    *("urllib/parse", "urllib/request", "xml/dom/minidom", "asyncio/tasks", "asyncio/queues", "concurrent/futures/thread"),
)
MAX_LINES = 1200


@dataclass(frozen=True, slots=True)
class Source:
    """A text with LF line ends, no tabs turned into anything and a final newline."""

    name: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """What is on disk, what is called, and what is right: the bytes after it, or (`expected` None) a refusal.

    `region` are the 1-based lines that the refusal must show; `places` those it must name, one for each place where `old`
    stands. `seen` is what the model read before, where that is not what is on disk.
    """

    name: str
    kind: str
    data: bytes
    old: str
    new: str
    expected: bytes | None
    region: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    replace_all: bool = False
    seen: bytes | None = None


def sources() -> list[Source]:
    """This project's Python, C++, Makefile and JavaScript, the standard library's Python, and a few files in other languages."""
    root = Path(kcode.__file__).resolve().parents[1]
    own = [path for folder in ("kcode", "sandbox", "backend/kcode_backend") for path in sorted((root / folder).rglob("*.py"))]
    own += [*sorted((root / "backend/csrc").rglob("*.h")), *sorted((root / "examples").rglob("*.js"))]
    # Several times, since few files begin their lines with tabs.
    own += [root / "Makefile"] * 4
    library = Path(sysconfig.get_path("stdlib"))
    paths = [(path, path.relative_to(root).as_posix()) for path in own if path.is_file()]
    paths += [(library / f"{name}.py", f"stdlib/{name}.py") for name in STDLIB if (library / f"{name}.py").is_file()]
    found = [as_source(name, path.read_text(encoding="utf-8", errors="replace")) for path, name in paths]
    for entry in sorted(files("kcode_bench").joinpath("edit_sources").iterdir(), key=lambda entry: entry.name):
        found += [as_source(entry.name.removesuffix(".txt"), entry.read_text(encoding="utf-8"))] * 8
    return [source for source in found if 40 <= len(source.lines) <= MAX_LINES]


def as_source(name: str, text: str) -> Source:
    lines = text.replace("\f", "").expandtabs(8) if name.startswith("stdlib/") else text
    kept = [line.rstrip() for line in lines.split("\n")]
    while kept and not kept[-1]:
        kept.pop()
    return Source(name, tuple(kept))


@dataclass(frozen=True, slots=True)
class Change:
    """An edit as a person thinks of it; the same change can be made in any way the lines are written.

    `kind` "word" puts `after` for `before` in line `at`; "delete" takes the line away; "insert" adds a line of the same
    indentation after it; "nest" adds two, the second one level deeper.
    """

    kind: str
    at: int
    before: str
    after: str

    def made(self, lines: list[str], unit: str) -> list[str]:
        line = lines[self.at]
        indent = line[: len(line) - len(line.lstrip())]
        match self.kind:
            case "word":
                changed = [re.sub(rf"\b{re.escape(self.before)}\b", self.after, line, count=1)]
            case "delete":
                changed = []
            case "insert":
                changed = [line, f"{indent}{self.after} = prepare({self.before})"]
            case _:
                changed = [line, f"{indent}if {self.before}:", f"{indent}{unit}{self.after} = prepare({self.before})"]
        return [*lines[: self.at], *changed, *lines[self.at + 1 :]]


@dataclass(frozen=True, slots=True)
class Place:
    """Lines first..first+count of a source (0-based), which stand nowhere else in it, and a change of them."""

    source: Source
    first: int
    count: int
    change: Change
    unit: str

    @property
    def block(self) -> list[str]:
        return list(self.source.lines[self.first : self.first + self.count])

    @property
    def before(self) -> list[str]:
        return list(self.source.lines[: self.first])

    @property
    def after(self) -> list[str]:
        return list(self.source.lines[self.first + self.count :])


def squeezed(line: str) -> str:
    return " ".join(line.split())


def telling(source: Source) -> set[int]:
    """Lines that say where they are: they stand once, and hold three words or more."""
    counts = Counter(squeezed(line) for line in source.lines)
    return {index for index, line in enumerate(source.lines) if counts[squeezed(line)] == 1 and len(set(WORD.findall(line))) >= 3}


def unit_of(source: Source) -> str:
    if any(line.startswith("\t") for line in source.lines):
        return "\t"
    return "  " if source.name.endswith((".js", ".yaml")) else "    "


Accept = Callable[[list[str]], bool]


def pick(source: Source, rng: random.Random, accept: Accept) -> Place | None:
    """A random place whose lines `accept` takes, two telling ones beside the changed one; None after many tries."""
    told = telling(source)
    for _ in range(200):
        count = rng.randint(3, 9)
        first = rng.randrange(0, max(len(source.lines) - count, 1))
        block = list(source.lines[first : first + count])
        if len(block) < count or not block[0].strip() or not block[-1].strip() or not accept(block):
            continue
        candidates = [index for index, line in enumerate(block) if WORD.search(line) and line.isascii()]
        if not candidates:
            continue
        at = rng.choice(candidates)
        if len(told & {first + index for index in range(count) if index != at}) < 2:
            continue
        word = rng.choice(WORD.findall(block[at]))
        kind = rng.choice(("word", "word", "word", "insert", "nest", "delete"))
        change = Change(kind, at, word, f"{word}_{rng.randint(2, 99)}")
        return Place(source, first, count, change, unit_of(source))
    return None
