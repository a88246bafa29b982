"""Where a change may be made: what exists, and the new things that the request allows. The model chooses one by its label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kcode.guided.edits import Call, CannotEdit, Edit, insert_definitions, rename, replace_lines
from kcode.guided.relevance import NAMED_WEIGHT, code_names, relevant
from kcode.guided.suspects import Suspect, words_of
from kcode.repomap import TEST_PATH, SourceFile
from kcode.tools.symbols import Symbol
from kcode.tools.syntax import SUFFIXES, describe_faults, faults, language_of
from kcode_prompts.prompt import load

# Each alternative costs the time of reading a dozen tokens.
MAX_REWRITES = 5
MAX_FILES = 2
MAX_BLOCK_CHARS = 3000
TEXT_SUFFIXES = (".md", ".txt", ".rst", ".toml", ".cfg", ".ini", ".json", ".yaml", ".yml", ".html", ".css", ".sql")
PATH = re.compile(r"(?<![\w./-])(?:[\w-]+/)*[\w-]+\.[A-Za-z]\w{0,4}(?![\w/])")


class Place(Protocol):
    """`question` asks the model for the text, whose answer begins with `opening`; `edit` is what to do with that text."""

    @property
    def label(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def opening(self) -> str: ...

    def edit(self, code: str) -> Edit:
        """Raises CannotEdit."""
        ...


@dataclass(frozen=True, slots=True)
class Rewrite:
    """An existing function or class, written anew as a whole; the answer begins with its own first words."""

    suspect: Suspect

    @property
    def label(self) -> str:
        return f"rewrite {self.suspect.symbol.qualified} in {self.path}"

    @property
    def path(self) -> str:
        return self.suspect.path

    @property
    def question(self) -> str:
        return load("guided/change_function", function=self.suspect.symbol.qualified, path=self.path)

    @property
    def opening(self) -> str:
        """Up to the name: parameters and docstring may be what is to be changed."""
        head = re.match(rf".*?\b{re.escape(self.suspect.symbol.name)}\b", self.suspect.code, re.DOTALL)
        return head[0] if head is not None else ""

    def edit(self, code: str) -> Edit:
        arguments: dict[str, object] = {"path": self.path, "name": self.suspect.symbol.qualified, "code": code}
        name = self.suspect.symbol.qualified
        return Edit((Call("rewrite_function", arguments),), (name,), f"Changed {name} in {self.path}.")


@dataclass(frozen=True, slots=True)
class Addition:
    """A new definition in an existing file, in a class when there is an `owner`; `name` is "" when the request names none."""

    file: SourceFile
    owner: Symbol | None
    name: str

    @property
    def label(self) -> str:
        named = f" {self.name}" if self.name else ""
        if self.owner is not None:
            return f"add a method{named} to {self.owner.qualified} in {self.path}"
        return f"add a function{named} to {self.path}"

    @property
    def path(self) -> str:
        return self.file.path

    @property
    def question(self) -> str:
        target = f"class {self.owner.qualified} in {self.path}" if self.owner is not None else self.path
        named = f" `{self.name}`" if self.name else ""
        return load("guided/add", what=("method" if self.owner is not None else "function") + named, target=target)

    @property
    def opening(self) -> str:
        """For Python and JavaScript the head of the definition, as far as it is known; for the model "(" begins a word."""
        language = language_of(self.path)
        if language == "python":
            inner = f"def {self.name}" if self.name and not self.name[0].isupper() else ""
            return f"class {self.owner.name}:\n    {inner or 'def '}" if self.owner is not None else inner
        if language in {"javascript", "typescript", "tsx"}:
            if self.owner is not None:
                return f"class {self.owner.name} {{\n  " + self.name
            exported = "export " if re.search(r"^export ", self.file.text, re.MULTILINE) else ""
            return f"{exported}function {self.name}" if self.name and not self.name[0].isupper() else ""
        return ""

    def edit(self, code: str) -> Edit:
        if self.owner is not None and language_of(self.path) != "python" and code.count("{") > code.count("}"):
            code += "\n}"
        calls, names = insert_definitions(self.file, code, self.owner)
        if self.name and self.name not in {name.rpartition(".")[2] for name in names}:
            raise CannotEdit(f"this defines {', '.join(names)}; the name must be {self.name}")
        return Edit(tuple(calls), names, f"Added {', '.join(names)} to {self.path}.")


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines that belong to no function, or a whole short text file; `first` and `last` count from 0, last not included."""

    path: str
    text: str
    first: int
    last: int

    @property
    def label(self) -> str:
        return f"edit the first lines of {self.path}" if self.last < self.text.count("\n") else f"edit {self.path}"

    @property
    def old(self) -> str:
        return "\n".join(self.text.split("\n")[self.first : self.last])

    @property
    def question(self) -> str:
        return load("guided/change_lines", path=self.path, lines=self.old)

    @property
    def opening(self) -> str:
        return ""

    def edit(self, code: str) -> Edit:
        if code.strip() == self.old.strip():
            raise CannotEdit("these are the same lines as before; change what the request asks for")
        call = replace_lines(self.path, self.text, self.first, self.last, code.split("\n"))
        return Edit((call,), (), f"Changed {self.path}.")


@dataclass(frozen=True, slots=True)
class NewFile:
    path: str

    @property
    def label(self) -> str:
        return f"create {self.path}"

    @property
    def question(self) -> str:
        return load("guided/create", path=self.path)

    @property
    def opening(self) -> str:
        return ""

    def edit(self, code: str) -> Edit:
        if not code.strip():
            raise CannotEdit("the file is empty")
        if wrong := faults(self.path, code):
            raise CannotEdit(f"the file has syntax errors:\n{describe_faults(wrong)}")
        return Edit((Call("create", {"path": self.path, "content": code.rstrip() + "\n"}),), (), f"Created {self.path}.")


@dataclass(frozen=True, slots=True)
class Renaming:
    """Another name for something that exists; the "text" of this place is the new name."""

    files: tuple[SourceFile, ...]
    suspect: Suspect

    @property
    def label(self) -> str:
        return f"rename {self.suspect.symbol.qualified} everywhere"

    @property
    def path(self) -> str:
        return self.suspect.path

    @property
    def question(self) -> str:
        return load("guided/rename", function=self.suspect.symbol.qualified)

    @property
    def opening(self) -> str:
        return ""

    def names(self, request: str) -> list[str]:
        """What of the request may be the new name: words of code first."""
        words = [*code_names(request), *re.findall(r"[A-Za-z_$][\w$]*", request)]
        taken = {symbol.name for file in self.files for symbol in file.symbols}
        stop = {*self.suspect.symbol.qualified.split("."), *taken, *self.path.replace("/", ".").split(".")}
        return [word for word in dict.fromkeys(words) if word not in stop]

    def edit(self, code: str) -> Edit:
        calls = rename(self.files, self.suspect.file, self.suspect.symbol, code)
        paths = ", ".join(dict.fromkeys(str(call.arguments["path"]) for call in calls))
        return Edit(tuple(calls), (code,), f"Renamed {self.suspect.symbol.qualified} to {code} in {paths}.")


def find_places(files: Sequence[SourceFile], texts: Sequence[Lines], known: set[str], request: str) -> list[Place]:
    """What may be changed for the request, the likeliest first. `known` are all paths; `texts` other files the request names."""
    ranked = relevant(files, request)
    named = [place for place in ranked if place.weight >= NAMED_WEIGHT]
    defined = {symbol.name for file in files for symbol in file.symbols}
    new_names = [name for name in code_names(request) if name not in defined and not any(name in path for path in known)]
    code = [file for file in ordered_files(files, ranked, request) if file.text.strip()][:MAX_FILES]
    name = new_names[0] if len(new_names) == 1 else ""
    owners = [
        (place.file, symbol)
        for place in named
        for symbol in place.file.symbols
        if symbol.kind == "class" and symbol.qualified in {place.symbol.qualified, place.symbol.qualified.rpartition(".")[0]}
    ]
    classes = [(file, symbol) for file in code for symbol in file.symbols if symbol.kind == "class"]
    owners += [(file, symbol) for file, symbol in classes if symbol.name in words_of(request)]
    chosen = list({(file.path, symbol): (file, symbol) for file, symbol in owners}.values())[:MAX_FILES]
    new_files = [path for path in dict.fromkeys(PATH.findall(request)) if path not in known and is_text(path)]
    functions = [place for place in ranked if place.symbol.kind != "class" or place.weight >= NAMED_WEIGHT]
    rewrites = [Rewrite(place) for place in (named + [place for place in functions if place not in named])[:MAX_REWRITES]]
    additions: list[Place] = [Addition(file, symbol, name) for file, symbol in chosen]
    additions += [Addition(file, None, name) for file in code]
    lines: list[Place] = [*texts, *(place for file in code if (place := head_of(file)) is not None)]
    renamings: list[Place] = [Renaming(tuple(files), place) for place in named[:2]]
    creations: list[Place] = [NewFile(path) for path in new_files]
    first = [*creations, *additions, *rewrites] if new_names or creations else [*rewrites, *additions]
    return [*first, *lines, *renamings]


def ordered_files(files: Sequence[SourceFile], ranked: Sequence[Suspect], request: str) -> list[SourceFile]:
    """Files by their best function; tests only when the request names them."""
    order = {path: place for place, path in enumerate(dict.fromkeys(place.path for place in ranked))}
    allowed = [file for file in files if not TEST_PATH.search(file.path) or file.path in request]
    mentioned = words_of(request)
    return sorted(allowed, key=lambda file: (file.path.rpartition("/")[2] not in mentioned, order.get(file.path, len(order))))


def head_of(file: SourceFile) -> Lines | None:
    """The lines before the first definition, when they hold more than a docstring and imports: settings, tables."""
    first = min((symbol.start_line for symbol in file.symbols), default=0) - 1
    head = "\n".join(file.text.split("\n")[: max(first, 0)]).rstrip()
    if "=" not in head or len(head) > MAX_BLOCK_CHARS:
        return None
    return Lines(file.path, file.text, 0, head.count("\n") + 1)


def whole_text(path: str, text: str) -> Lines | None:
    """A short text file as one place."""
    body = text.rstrip("\n")
    return Lines(path, text, 0, body.count("\n") + 1) if body and len(body) <= MAX_BLOCK_CHARS else None


def is_text(path: str) -> bool:
    return path.lower().endswith((*SUFFIXES, *TEXT_SUFFIXES))
