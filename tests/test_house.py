"""The house rules of the design, as a failing test. There is no opt-out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "kcode": ROOT / "kcode",
    "kcode_backend": ROOT / "backend" / "kcode_backend",
    "kcode_sandbox": ROOT / "sandbox" / "kcode_sandbox",
    "kcode_prompts": ROOT / "prompts" / "kcode_prompts",
    "kcode_bench": ROOT / "swebench" / "kcode_bench",
}
MAX_FILE_LINES = 500
MAX_KERNEL_LINES = 800
MAX_LOOP_LINES = 250
MAX_FUNCTION_LINES = 60
MAX_CLASS_METHODS = 25
OPT_OUTS = re.compile(r"#\s*(type:\s*ignore|noqa|pyright:|pragma: no cover)")
FORBIDDEN_NAMES = re.compile(r"(Manager|Helper|Utils|Util|Service|Controller)$")

SOURCES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
KERNELS = sorted(path for path in (ROOT / "backend" / "csrc").rglob("*") if path.suffix in {".cpp", ".cu", ".h", ".cuh"})

# What each part of kcode may import from kcode, by first path component below kcode/ (modules without .py).
FOUNDATION = {"messages", "events", "errors", "model"}
LAYERS: dict[str, set[str]] = {
    "messages": set(),
    "errors": set(),
    "model": {"messages"},
    "events": {"messages", "model"},
    "models": FOUNDATION | {"models", "paths"},
    "tools": FOUNDATION | {"tools"},
    "loop": FOUNDATION | {"tools", "approval", "steps", "turn", "hints"},
    "steps": FOUNDATION | {"tools", "approval", "repeats", "turn", "answers", "reading_calls"},
    "hints": {"messages"},
    "handoff": FOUNDATION | {"transcript", "hints"},
    "weights": FOUNDATION | {"context", "turn"},
    "compaction": FOUNDATION | {"context", "handoff", "steps", "transcript", "turn", "weights"},
    "turn": FOUNDATION | {"tools", "approval"},
    "answers": FOUNDATION | {"turn"},
    "reading_calls": FOUNDATION | {"tools"},
    "repeats": {"messages"},
    "approval": FOUNDATION | {"tools"},
    "context": FOUNDATION | {"transcript", "tools", "turn"},
    "checked": set(),
    "transcript": FOUNDATION | {"checked", "paths"},
    "repomap": FOUNDATION | {"tools"},
    "ci": FOUNDATION | {"tools", "repomap", "models", "clone_tree", "transcript", "session", "opening", "settings", "paths"},
    "guided": FOUNDATION | {"tools", "repomap", "steps", "turn", "loop"},
}


def module_of(path: Path) -> str:
    for name, folder in PACKAGES.items():
        if path.is_relative_to(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            return ".".join((name, *parts)).removesuffix(".__init__")
    raise AssertionError(f"{path} is in no package")


def imports_of(path: Path) -> list[str]:
    """Every imported module, with `from a import b` as both a and a.b."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import at line {node.lineno}"
            assert node.module is not None
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_file_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    limit = MAX_LOOP_LINES if path == ROOT / "kcode" / "loop.py" else MAX_FILE_LINES
    assert lines <= limit, f"{lines} lines, at most {limit}"
    if path != Path(__file__):
        for number, line in enumerate(text.splitlines(), 1):
            assert not OPT_OUTS.search(line), f"line {number} opts out of a check: {line.strip()}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"
        elif isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            assert len(methods) <= MAX_CLASS_METHODS, f"{node.name} has {len(methods)} methods, at most {MAX_CLASS_METHODS}"
            assert not FORBIDDEN_NAMES.search(node.name), f"{node.name}: name the thing, not its role"


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: str(path.relative_to(ROOT)))
def test_kernel_file_is_short(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= MAX_KERNEL_LINES, f"{lines} lines, at most {MAX_KERNEL_LINES}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    module = module_of(path)
    package = module.partition(".")[0]
    for name in imports_of(path):
        target = name.partition(".")[0]
        if package in {"kcode_backend", "kcode_sandbox", "kcode_prompts"}:
            assert target not in PACKAGES or target == package, f"{module} imports {name}"
        if package == "kcode":
            assert target != "torch", f"{module} imports torch"
            assert target != "kcode_bench", f"{module} imports {name}"
    if package == "kcode":
        area = module.partition(".")[2].partition(".")[0]
        allowed = LAYERS.get(area)
        for name in imports_of(path):
            if allowed is None or not name.startswith("kcode."):
                continue
            target = name.split(".")[1]
            assert target in allowed or target == area, f"{module} imports {name}; {area} may import {sorted(allowed)}"


def test_package_init_files_are_empty() -> None:
    for path in SOURCES:
        if path.name == "__init__.py" and path != ROOT / "kcode" / "__init__.py":
            assert path.read_text() == "", f"{path.relative_to(ROOT)}: import from the defining module"


def test_folders_of_packages_are_not_packages() -> None:
    for folder in ("backend", "sandbox", "swebench", "prompts"):
        assert not (ROOT / folder / "__init__.py").exists()
