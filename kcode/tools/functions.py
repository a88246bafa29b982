"""Replacing one definition in a source text by a new one that a model wrote."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from kcode.tools.refusal import Refusal
from kcode.tools.symbols import Symbol, named, symbols
from kcode.tools.syntax import describe_faults, faults, language_of, parse

FENCE = re.compile(r"^\s*```[^\n]*\n(.*?)\n?\s*```\s*$", re.DOTALL)
# A method alone is no valid source in these languages: it is parsed inside a class, or an object literal.
ENCLOSURES: dict[str, tuple[tuple[str, str], ...]] = {
    "javascript": (("", ""), ("class _ {\n", "\n}"), ("({\n", "\n})")),
    "typescript": (("", ""), ("class _ {\n", "\n}"), ("({\n", "\n})")),
    "tsx": (("", ""), ("class _ {\n", "\n}"), ("({\n", "\n})")),
    "java": (("", ""), ("class _ {\n", "\n}")),
    "cpp": (("", ""), ("class _ {\n", "\n};")),
}
MAX_NAMES = 60


@dataclass(frozen=True, slots=True)
class Rewritten:
    """`spans` are (start, end, new text) in the old text's characters, in order; `notes` tell what was adapted."""

    qualified: str
    first_line: int
    spans: list[tuple[int, int, str]]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """What a model wrote, parsed. `removed` is the indentation taken from the start of each line of `source`."""

    source: str
    removed: tuple[str, ...]
    found: tuple[Symbol, ...]
    chosen: Symbol
    kept_rows: frozenset[int]

    def text(self, start_byte: int, end_byte: int, indent: str) -> str:
        """A part of the source, indented to `indent` but for its first line, which stands where the old one stood.

        Lines inside multi-line strings are data and stay as they were written; docstrings move with the code.
        """
        data = self.source.encode()
        row = data.count(b"\n", 0, start_byte)
        own = indent_at(data, start_byte)
        first, *rest = data[start_byte:end_byte].decode().rstrip("\n").split("\n")
        lines = [first]
        for offset, line in enumerate(rest, row + 1):
            if offset in self.kept_rows:
                lines.append(self.removed[offset] + line)
            else:
                lines.append(indent + line.removeprefix(own) if line.strip() else "")
        return "\n".join(lines)


def rewritten(path: str, text: str, name: str, code: str) -> Rewritten:
    """What to change in `text` so that the definition `name` becomes `code`.

    Decorators, `export` and attributes of the old definition stay when the new one has none. Indentation follows the old
    definition. Python imports in `code` that the file lacks go to its imports; new top-level definitions before the old one.
    """
    target = choose(path, text, name, code)
    new = parsed(path, target, code)
    data = text.encode()
    indent = indent_at(data, target.start_byte)
    chosen = new.chosen
    if new.source.encode()[chosen.start_byte : chosen.core_byte].strip():
        start, end = target.start_byte, target.end_byte
        body = new.text(chosen.start_byte, chosen.end_byte, indent)
    else:
        start, end = target.core_byte, target.core_end_byte
        body = new.text(chosen.core_byte, chosen.core_end_byte, indent)
    spans = [(len(data[:start].decode()), len(data[:end].decode()), body)]
    notes: list[str] = []
    companions, ignored = others(path, text, target, new)
    if companions:
        position = len(data[: target.start_byte].decode())
        added = "".join(new.text(symbol.start_byte, symbol.end_byte, "") + "\n\n\n" for symbol in companions)
        spans.insert(0, (position, position, added))
        notes.append(f"Added {', '.join(symbol.qualified for symbol in companions)}.")
    if path.endswith((".py", ".pyi")):
        imports, statements = python_rest(text, new.source)
        ignored += statements
        if imports:
            position = import_position(text)
            spans.insert(0, (position, position, "".join(line + "\n" for line in imports)))
            notes.append(f"Added {'; '.join(imports)}.")
    if ignored:
        notes.append(f"Left out, because only {target.qualified} is replaced: {', '.join(ignored)}.")
    return Rewritten(target.qualified, target.start_line, sorted(spans, key=lambda span: span[0]), tuple(notes))


def choose(path: str, text: str, name: str, code: str) -> Symbol:
    """The one definition that `name` means."""
    found = symbols(path, text)
    candidates = named(found, name) or named(found, name.removeprefix(PurePosixPath(path).stem + "."))
    if not candidates:
        names = list(dict.fromkeys(symbol.qualified for symbol in found if symbol.kind != "module"))
        listed = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
        raise Refusal(
            f"{path} has no function {name!r}; it has: {listed}" if names else f"{path} has no functions; use str_replace"
        )
    if len(candidates) == 1:
        return candidates[0]
    # Properties and overloads share a name; their decorators or signature tell them apart.
    lines = text.split("\n")
    head = first_line(code)
    same = [symbol for symbol in candidates if lines[symbol.start_line - 1].strip() == head]
    if len(same) == 1:
        return same[0]
    places = ", ".join(f"{symbol.qualified} at line {symbol.core_line}" for symbol in candidates)
    raise Refusal(f"{name!r} may mean {places}; give the qualified name, or edit one of them with str_replace")


def first_line(code: str) -> str:
    return next((line.strip() for line in code.split("\n") if line.strip()), "")


def parsed(path: str, target: Symbol, code: str) -> Code:
    """The model's code with the definition that has the target's name."""
    fence = FENCE.match(code)
    source, removed = unindented((fence.group(1) if fence else code).replace("\r\n", "\n"))
    language = language_of(path) or ""
    problems = ""
    for opening, closing in ENCLOSURES.get(language, (("", ""),)):
        enclosed = opening + source + closing
        found = symbols(path, enclosed)
        chosen = pick(found, target)
        wrong = faults(path, enclosed)
        if chosen is None or wrong:
            problems = problems or describe_faults(wrong)
            continue
        rows = ("",) * opening.count("\n") + removed + ("",) * closing.count("\n")
        return Code(enclosed, rows, found, chosen, string_rows(path, enclosed))
    if problems:
        raise Refusal(
            f"the code for {target.qualified} has syntax errors (its own line numbers); nothing was changed:\n{problems}"
        )
    given = ", ".join(dict.fromkeys(symbol.qualified for symbol in symbols(path, source)))
    raise Refusal(
        f"the code must be the whole definition of {target.qualified}, starting with its signature; "
        + (f"it defines {given}" if given else "it holds no definition")
    )


def unindented(code: str) -> tuple[str, tuple[str, ...]]:
    """`code` without the indentation of its first line, and what was removed from each line.

    Not textwrap.dedent: a string with text at the margin would keep the whole code indented.
    """
    lines = code.strip("\n").rstrip().split("\n")
    margin = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    removed = tuple(margin if line.startswith(margin) else "" for line in lines)
    return "\n".join(line.removeprefix(margin) for line in lines) + "\n", (*removed, "")


def string_rows(path: str, source: str) -> frozenset[int]:
    """0-based rows that begin inside a string, docstrings excepted."""
    language = language_of(path)
    if language is None:
        return frozenset()
    rows: set[int] = set()
    stack = [parse(language, source.encode()).root_node]
    while stack:
        node = stack.pop()
        if "string" in node.type and node.type != "string_content":
            parent = node.parent
            if parent is None or parent.type != "expression_statement" or language != "python":
                rows.update(range(node.start_point[0] + 1, node.end_point[0] + 1))
        else:
            stack += node.children
    return frozenset(rows)


def pick(found: tuple[Symbol, ...], target: Symbol) -> Symbol | None:
    """By the whole name, else by the last part; of the same kind before another, the outermost first."""
    exact = [symbol for symbol in found if symbol.qualified == target.qualified]
    same = [symbol for symbol in found if symbol.name == target.name and (symbol.kind == "class") == (target.kind == "class")]
    alike = [symbol for symbol in same if symbol.kind == target.kind]
    return next(iter(exact + alike + same), None)


def others(path: str, text: str, target: Symbol, new: Code) -> tuple[list[Symbol], list[str]]:
    """What else the code defines: new top-level definitions to add, and the names of what is left out."""
    known = {symbol.qualified for symbol in symbols(path, text)}
    companions: list[Symbol] = []
    ignored: list[str] = []
    for symbol in new.found:
        apart = symbol.end_byte <= new.chosen.start_byte or symbol.start_byte >= new.chosen.end_byte
        if not apart or "." in symbol.qualified:
            continue
        if symbol.qualified in known or "." in target.qualified:
            ignored.append(symbol.qualified)
        else:
            companions.append(symbol)
    return companions, ignored


def python_rest(text: str, code: str) -> tuple[list[str], list[str]]:
    """Imports of `code` that `text` lacks, and a name for each other top-level statement that is no definition."""
    imports: list[str] = []
    ignored: list[str] = []
    lines = {line.strip() for line in text.split("\n")}
    for node in ast.parse(code).body:
        source = ast.get_source_segment(code, node) or ""
        if isinstance(node, ast.Import | ast.ImportFrom):
            if source not in lines:
                imports.append(source)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not is_docstring(node):
            first, *_ = source.split("\n")
            ignored.append(f"`{first[:40]}`")
    return imports, ignored


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def import_position(text: str) -> int:
    """Where an import may be added: after the last top-level import, else after the module's docstring."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return 0
    line = 0
    for index, node in enumerate(body):
        if isinstance(node, ast.Import | ast.ImportFrom) or (index == 0 and is_docstring(node)):
            line = node.end_lineno or node.lineno
    lines = text.split("\n")
    return min(sum(len(part) + 1 for part in lines[:line]), len(text))


def indent_at(data: bytes, offset: int) -> str:
    """The white space at the start of the line that holds `offset`."""
    start = data.rfind(b"\n", 0, offset) + 1
    line = data[start:].split(b"\n", 1)[0].decode(errors="replace")
    return line[: len(line) - len(line.lstrip())]
