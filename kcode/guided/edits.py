"""Edits as calls of the editing tools: new definitions, new lines, new names, each at a place that is certainly there."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kcode.repomap import SourceFile
from kcode.tools.functions import import_position, python_rest
from kcode.tools.symbols import Symbol, symbols
from kcode.tools.syntax import describe_faults, faults, language_of, parse

if TYPE_CHECKING:
    from tree_sitter import Node

MEMBER_FIELDS = ("attribute", "property", "field")
# A program's entry, and its call below, stay at the end of the file.
ENTRY = "main"


class CannotEdit(Exception):
    """What the model wrote cannot be put there; the message is for the model."""


@dataclass(frozen=True, slots=True)
class Call:
    tool: str
    arguments: dict[str, object]


@dataclass(frozen=True, slots=True)
class Edit:
    """Calls to make in this order; `names` are the definitions they make or change, `done` says it to the person."""

    calls: tuple[Call, ...]
    names: tuple[str, ...]
    done: str


def replace_lines(path: str, text: str, first: int, last: int, new: Sequence[str]) -> Call:
    """Replace the lines first..last (from 0, last not included) by `new`; lines around them are taken in until they are unique.

    With first == last the lines are inserted there.
    """
    lines = text.split("\n")
    start, end = first, last
    while text.count("\n".join(lines[start:end])) != 1 or not "".join(lines[start:end]).strip():
        if start > 0:
            start -= 1
        elif end < len(lines):
            end += 1
        else:
            raise CannotEdit(f"{path} is empty")
    old = "\n".join(lines[start:end])
    return Call("str_replace", {"path": path, "old": old, "new": "\n".join([*lines[start:first], *new, *lines[last:end]])})


def insert_definitions(file: SourceFile, code: str, owner: Symbol | None) -> tuple[list[Call], tuple[str, ...]]:
    """The calls that add what `code` newly defines (methods of `owner`, when given), and the names. Raises CannotEdit."""
    wrong = faults(file.path, code)
    if wrong:
        raise CannotEdit(f"the code has syntax errors (its own line numbers):\n{describe_faults(wrong)}")
    new = new_definitions(file, code, owner)
    language = language_of(file.path)
    blank = [""] * (2 if language == "python" and owner is None else 1)
    at, indent = insertion_point(file, owner)
    added: list[str] = []
    for symbol in new:
        added += [*blank, *textwrap.indent(definition(code, symbol), indent).split("\n")]
    calls = [replace_lines(file.path, file.text, at, at, added)]
    if language == "python":
        imports, _ = python_rest(file.text, code)
        if imports:
            line = file.text.count("\n", 0, import_position(file.text))
            calls.append(replace_lines(file.path, file.text, line, line, imports))
    return calls, tuple(symbol.qualified for symbol in new)


def new_definitions(file: SourceFile, code: str, owner: Symbol | None) -> list[Symbol]:
    known = {symbol.qualified for symbol in file.symbols}
    scope = owner.qualified if owner is not None else ""
    own = [symbol for symbol in symbols(file.path, code) if symbol.qualified.rpartition(".")[0] == scope]
    new = [symbol for symbol in own if symbol.qualified not in known]
    if not new:
        given = ", ".join(symbol.qualified for symbol in own)
        raise CannotEdit(f"{given} is in {file.path} already; write what is new" if given else "the code defines nothing")
    return new


def definition(code: str, symbol: Symbol) -> str:
    """The definition's text without its indentation."""
    data = code.encode()
    line = data.rfind(b"\n", 0, symbol.start_byte) + 1
    before = data[line : symbol.start_byte].decode()
    return textwrap.dedent(("" if before.strip() else before) + data[symbol.start_byte : symbol.end_byte].decode()).rstrip()


def insertion_point(file: SourceFile, owner: Symbol | None) -> tuple[int, str]:
    """After how many lines a new definition goes, and its indentation: behind the last of its kind."""
    scope = owner.qualified if owner is not None else ""
    siblings = [symbol for symbol in file.symbols if symbol.qualified.rpartition(".")[0] == scope]
    lines = file.text.split("\n")
    if owner is not None:
        opening = lines[owner.core_line - 1]
        outer = opening[: len(opening) - len(opening.lstrip())]
        if siblings:
            first = lines[siblings[0].core_line - 1]
            return max(symbol.end_line for symbol in siblings), first[: len(first) - len(first.lstrip())] or outer
        is_python = language_of(file.path) == "python"
        return owner.end_line - (0 if is_python else 1), outer + ("    " if is_python else "  ")
    ends = [symbol.end_line for symbol in siblings if symbol.name != ENTRY]
    return (max(ends), "") if ends else (len(file.text.rstrip("\n").split("\n")), "")


def rename(files: Sequence[SourceFile], target: SourceFile, symbol: Symbol, new: str) -> list[Call]:
    """The calls that give the symbol another name wherever code means it. Raises CannotEdit when that is not certain."""
    if not new.isidentifier():
        raise CannotEdit(f"{new!r} is no name")
    if any(other.name == new for file in files for other in file.symbols):
        raise CannotEdit(f"there is a {new} already")
    same = {(file.path, other.qualified) for file in files for other in file.symbols if other.name == symbol.name}
    if len(same) > 1:
        raise CannotEdit(f"several definitions are named {symbol.name}")
    module = target.path.rpartition("/")[2].partition(".")[0]
    calls: list[Call] = []
    for file in files:
        text = file.text
        rows = sorted({row for row, _ in uses(file, symbol, module)})
        columns = list(uses(file, symbol, module))
        for row in rows:
            line = text.split("\n")[row]
            data = line.encode()
            for _, column in sorted((place for place in columns if place[0] == row), reverse=True):
                data = data[:column] + new.encode() + data[column + len(symbol.name.encode()) :]
            call = replace_lines(file.path, text, row, row + 1, [data.decode()])
            calls.append(call)
            text = text.replace(str(call.arguments["old"]), str(call.arguments["new"]), 1)
    return calls


def uses(file: SourceFile, symbol: Symbol, module: str) -> Iterator[tuple[int, int]]:
    """Row and byte column of each identifier that means the symbol: for a method its attributes, else names and `module.name`."""
    language = language_of(file.path)
    if language is None or symbol.name not in file.text:
        return
    wanted = symbol.name.encode()
    stack = [parse(language, file.text.encode()).root_node]
    while stack:
        node = stack.pop()
        if not node.children:
            if node.type.endswith("identifier") and node.text == wanted and means(node, symbol, module):
                yield node.start_point[0], node.start_point[1]
        else:
            stack += node.children


def means(node: Node, symbol: Symbol, module: str) -> bool:
    parent = node.parent
    if parent is None:
        return False
    if parent.child_by_field_name("name") == node and parent.type != "keyword_argument":
        return True
    if parent.type == "keyword_argument" and parent.child_by_field_name("name") == node:
        return False
    is_member = any(parent.child_by_field_name(field) == node for field in MEMBER_FIELDS)
    if symbol.kind == "method":
        return is_member
    whole = (parent.text or b"").decode(errors="replace")
    return not is_member or whole.rpartition(".")[0].rpartition(".")[2] == module
