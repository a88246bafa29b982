"""A test of what a message says: it fails as the message says, and passes when the call gives what it should.

Such a test judges a repair where the project has none that fails, or none that can be run. Python only.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kcode.guided.said_check import AS_SAID
from kcode.guided.sayings import Saying, Told, sayings
from kcode.repomap import TEST_PATH, SourceFile
from kcode.tools.testing.report import FailingTest, TestReport

# What messages use without saying where it is from.
COMMON = {
    "Decimal": "decimal",
    "Fraction": "fractions",
    "Path": "pathlib",
    "PurePosixPath": "pathlib",
    "Counter": "collections",
    "OrderedDict": "collections",
    "defaultdict": "collections",
    "deque": "collections",
    "date": "datetime",
    "timedelta": "datetime",
    "timezone": "datetime",
    "BytesIO": "io",
    "StringIO": "io",
}
CHECK = Path(__file__).parent / "said_check.py"
CHECK_NAME = "kcode_said_check.py"
HEAD = '"""What the message says."""\n\nfrom kcode_said_check import check, module'


@dataclass(frozen=True, slots=True)
class Reproduction:
    """`files` are the test file at `path` and what it imports: they belong inside the sandbox, outside of the workspace."""

    path: str
    files: dict[str, bytes]
    said: tuple[Saying, ...]


def reproduce(text: str, files: Sequence[SourceFile]) -> Reproduction | None:
    """The tests of all that `text` says of calls of the project's code; None when it says nothing that can be tested."""
    said: list[Saying] = []
    lines: dict[str, None] = {}
    tests: list[str] = []
    for saying in sayings(text):
        imports = imports_of(saying.call, files)
        if imports is None:
            continue
        lines |= dict.fromkeys(imports)
        said.append(saying)
        call = f"{saying.call!r}, lambda: {saying.call}, {pair(saying.got)}, {pair(saying.wanted)}"
        tests.append(f"def test_said_{len(said)}():\n    check({call})\n")
    if not said:
        return None
    source = "\n\n".join([HEAD, "\n".join(lines), *tests])
    folder = f"/tmp/kcode-said-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    path = f"{folder}/test_said.py"
    return Reproduction(path, {f"{folder}/{CHECK_NAME}": CHECK.read_bytes(), path: source.encode()}, tuple(said))


def pair(told: Told) -> str:
    return repr((told.text, told.literal))


def fails_as_said(report: TestReport) -> bool:
    """Whether the run of the tests shows that the message was read rightly, and that it is right."""
    return not report.problem and bool(as_said(report))


def as_said(report: TestReport) -> tuple[FailingTest, ...]:
    """The tests that fail in the way the message says."""
    return tuple(test for test in report.failing if AS_SAID in test.message)


def imports_of(call: str, files: Sequence[SourceFile]) -> list[str] | None:
    """Statements that define the names the call uses; None when one is not known, is ambiguous, or nothing is the project's."""
    names = {node.id for node in ast.walk(ast.parse(call, mode="eval")) if isinstance(node, ast.Name)}
    lines: list[str] = []
    is_own = False
    for name in sorted(names):
        if line := own_import(name, files):
            lines.append(line)
            is_own = True
        elif name in COMMON:
            lines.append(f"from {COMMON[name]} import {name}")
        elif name in sys.stdlib_module_names:
            lines.append(f"import {name}")
        elif not hasattr(builtins, name):
            return None
    return lines if is_own else None


def own_import(name: str, files: Sequence[SourceFile]) -> str:
    """The statement that gives the project's function, class or module of that name; "" when there is none, or several."""
    code = [file for file in files if file.path.endswith(".py") and not TEST_PATH.search(file.path)]
    packages = {file.path.rpartition("/")[0] for file in files if file.path.endswith("/__init__.py")}
    defining = [
        file for file in code if any(symbol.qualified == name and symbol.kind in {"function", "class"} for symbol in file.symbols)
    ]
    if len(defining) > 1:
        defining = [file for file in defining if file.path.rpartition("/")[0] in packages]
    if len(defining) == 1:
        folder, module = module_of(defining[0].path, packages)
        return f"{name} = module({folder!r}, {module!r}).{name}"
    if defining:
        return ""
    modules = [
        file.path for file in code if file.path.endswith((f"/{name}.py", f"/{name}/__init__.py")) or file.path == f"{name}.py"
    ]
    modules += [f"{name}/__init__.py"] if name in packages and f"{name}/__init__.py" not in modules else []
    if len(modules) != 1:
        return ""
    folder, module = module_of(modules[0], packages)
    return f"{name} = module({folder!r}, {module!r})"


def module_of(path: str, packages: set[str]) -> tuple[str, str]:
    """The folder that has to be on the path, and the dotted name, of a Python file."""
    folder, _, file = path.rpartition("/")
    names = [] if file == "__init__.py" else [file.removesuffix(".py")]
    while folder in packages:
        folder, _, name = folder.rpartition("/")
        names.insert(0, name)
    return folder, ".".join(names)
