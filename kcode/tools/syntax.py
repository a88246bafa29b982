"""Tree-sitter grammars: which language a file is in, its syntax tree, and the errors an edit introduced."""

from __future__ import annotations

import ast
import importlib
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tree_sitter import Node, Parser, Tree

CommonLanguage = Literal["python", "javascript", "typescript", "tsx", "go", "rust", "java", "c", "cpp", "bash"]
Language = CommonLanguage | Literal["ruby", "php", "c_sharp", "kotlin", "lua", "scala", "swift"]

SUFFIXES: dict[str, Language] = {
    ".py": "python",
    ".pyi": "python",
    ".js": "javascript",
    ".jsx": "javascript",
    ".mjs": "javascript",
    ".cjs": "javascript",
    ".ts": "typescript",
    ".mts": "typescript",
    ".cts": "typescript",
    ".tsx": "tsx",
    ".go": "go",
    ".rs": "rust",
    ".java": "java",
    ".c": "c",
    ".h": "cpp",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".cxx": "cpp",
    ".hh": "cpp",
    ".hpp": "cpp",
    ".hxx": "cpp",
    ".cu": "cpp",
    ".cuh": "cpp",
    ".sh": "bash",
    ".bash": "bash",
    ".rb": "ruby",
    ".rake": "ruby",
    ".php": "php",
    ".cs": "c_sharp",
    ".kt": "kotlin",
    ".kts": "kotlin",
    ".lua": "lua",
    ".scala": "scala",
    ".sc": "scala",
    ".swift": "swift",
}

# Where each grammar lives: module and the function that returns its language.
GRAMMARS: dict[Language, tuple[str, str]] = {
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "java": ("tree_sitter_java", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "bash": ("tree_sitter_bash", "language"),
    "ruby": ("tree_sitter_ruby", "language"),
    "php": ("tree_sitter_php", "language_php"),
    "c_sharp": ("tree_sitter_c_sharp", "language"),
    "kotlin": ("tree_sitter_kotlin", "language"),
    "lua": ("tree_sitter_lua", "language"),
    "scala": ("tree_sitter_scala", "language"),
    "swift": ("tree_sitter_swift", "language"),
}

MAX_PARSED_BYTES = 2 << 20
MAX_ERRORS = 200


@dataclass(frozen=True, slots=True)
class SyntaxFault:
    """`line` is 1-based; `text` is that line, stripped; `what` says what is wrong with it."""

    line: int
    what: str
    text: str


def language_of(path: str) -> Language | None:
    """The language by the file's suffix; None when kcode has no grammar for it."""
    return SUFFIXES.get(PurePosixPath(path).suffix.lower())


@cache
def parser_of(language: Language) -> Parser:
    """Loaded at first use: a grammar costs a few milliseconds and most sessions need one or two."""
    tree_sitter = importlib.import_module("tree_sitter")
    module, function = GRAMMARS[language]
    grammar = cast("Callable[[], object]", getattr(importlib.import_module(module), function))
    return tree_sitter.Parser(tree_sitter.Language(grammar()))


def parse(language: Language, source: bytes) -> Tree:
    return parser_of(language).parse(source)


def faults(path: str, text: str) -> tuple[SyntaxFault, ...]:
    """Syntax errors of `text` in file order; empty for unknown languages and for files over 2 MB."""
    language = language_of(path)
    source = text.encode()
    if language is None or len(source) > MAX_PARSED_BYTES:
        return ()
    lines = text.split("\n")
    found: list[SyntaxFault] = []
    for node in error_nodes(parse(language, source).root_node):
        row = min(node.start_point[0], len(lines) - 1)
        snippet = (node.text or b"").decode(errors="replace").split("\n")[0].strip()[:60]
        what = f"missing {node.type!r}" if node.is_missing else f"unexpected {snippet!r}"
        found.append(SyntaxFault(row + 1, what, lines[row].strip()))
    if language == "python" and (fault := python_fault(text, lines)) is not None:
        # CPython's message is exact where the grammar only recovers, and it alone sees wrong indentation.
        found.insert(0, fault)
    return tuple(found)


def error_nodes(root: Node) -> Iterator[Node]:
    """The outermost error and missing nodes, at most MAX_ERRORS."""
    stack = [root]
    count = 0
    while stack and count < MAX_ERRORS:
        node = stack.pop()
        if node.is_error or node.is_missing:
            count += 1
            yield node
        elif node.has_error:
            stack += reversed(node.children)


def python_fault(text: str, lines: list[str]) -> SyntaxFault | None:
    """What CPython's own parser says; None when it accepts the text or cannot judge it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except SyntaxError as error:
        row = min(max((error.lineno or 1) - 1, 0), len(lines) - 1)
        return SyntaxFault(row + 1, error.msg, lines[row].strip())
    except (ValueError, RecursionError, MemoryError):
        return None
    return None


def introduced_faults(path: str, before: str, after: str) -> tuple[SyntaxFault, ...]:
    """Faults of `after` that `before` did not have; one that only moved to another line is not new."""
    now = faults(path, after)
    if not now:
        return ()
    old = faults(path, before)
    if old and language_of(path) == "python" and (shadow := python_fault(after, after.split("\n"))) in now:
        # CPython tells the first error only: behind one that was repaired, another old one appears.
        now = tuple(fault for fault in now if fault != shadow)
    known = Counter((fault.what, fault.text) for fault in old)
    new: list[SyntaxFault] = []
    for fault in now:
        key = (fault.what, fault.text)
        if known[key]:
            known[key] -= 1
        else:
            new.append(fault)
    return tuple(new)


def describe_faults(found: tuple[SyntaxFault, ...], limit: int = 5) -> str:
    """For the model: one line per fault, at most `limit`."""
    lines = [f"line {fault.line}: {fault.what}: {fault.text[:120]}" for fault in found[:limit]]
    if len(found) > limit:
        lines.append(f"and {len(found) - limit} more")
    return "\n".join(lines)
