"""Runs Python tests where pytest is not installed: unittest cases, test functions and plain test classes.

This file is copied into the sandbox and run there by the project's own interpreter: standard library only, Python 3.8 and
newer, no import of kcode. Usage: plain_runner.py REPORT PATTERN FILE[::Class][::test]… ; REPORT gets one JSON line per event.
unittest itself catches whatever a test raises, also for plain functions, for imports and for looking at values.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import linecache
import os
import sys
import tempfile
import traceback
import unittest
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
    Case = tuple[str, unittest.TestCase]

ROOT = os.path.realpath(os.getcwd())
LIBRARIES = ("site-packages", "node_modules", ".venv", "venv", ".tox")
VALUE_CHARS = 400


class Watch(Protocol):
    """The observer of observer.py, which lies beside this file."""

    outcome: str

    def begin(self) -> None: ...

    def end(self, test: str) -> None: ...


WATCH: Watch = importlib.import_module("kcode_test_observer").observer


class Recorder(unittest.TestResult):
    """Writes an event when a test starts and when it ends; `ids` maps a test object to its id."""

    def __init__(self, stream: TextIO, ids: dict[int, str]) -> None:
        super().__init__()
        self.stream = stream
        self.ids = ids
        self.wrong = False
        self.last = ""

    def write(
        self, event: str, test: unittest.TestCase, message: str = "", frames: list[dict[str, object]] | None = None
    ) -> None:
        name = self.ids.get(id(test), test.id())
        self.last = "failed" if event == "error" else event
        self.stream.write(json.dumps({"event": event, "id": name, "message": message, "frames": frames or []}) + "\n")
        self.stream.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.wrong = False
        self.write("start", test)
        WATCH.begin()

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        WATCH.outcome = self.last
        WATCH.end(self.watched(test))

    def watched(self, test: unittest.TestCase) -> str:
        return self.ids.get(id(test), test.id())

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.write("passed", test)

    def addFailure(self, test: unittest.TestCase, err: ExceptionInfo) -> None:
        self.report("failed", test, err)

    def addError(self, test: unittest.TestCase, err: ExceptionInfo) -> None:
        self.report("error", test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.write("skipped", test, reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: ExceptionInfo) -> None:
        self.write("skipped", test, "expected failure")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self.write("failed", test, "passed, but is marked as an expected failure")

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: ExceptionInfo | None) -> None:
        if err is not None:
            self.report("failed", test, err, prefix=subtest_label(subtest))

    def report(self, event: str, test: unittest.TestCase, err: ExceptionInfo, prefix: str = "") -> None:
        if self.wrong:
            return  # one event a test: its first failure
        self.wrong = True
        _, error, trace = err
        frames = own_frames(trace, error)
        message = "" if error is None else "".join(traceback.format_exception_only(type(error), error)).strip()
        self.write(event, test, prefix + message + explanation(error, trace), frames)


class Loading(Recorder):
    """For importing test files: only failures are events, and the start, which tells what hangs."""

    def addSuccess(self, test: unittest.TestCase) -> None:
        return

    def watched(self, test: unittest.TestCase) -> str:
        return ""


def subtest_label(subtest: unittest.TestCase) -> str:
    words = subtest.id().split(" ", 1)
    return f"subtest {words[1]}: " if len(words) > 1 else ""


def own_frames(trace: TracebackType | None, error: BaseException | None) -> list[dict[str, object]]:
    """The frames in files of the project, outermost first; for a syntax error its own place."""
    found: list[dict[str, object]] = []
    for entry in traceback.extract_tb(trace):
        path = relative(entry.filename)
        if path is not None:
            found.append({"path": path, "line": entry.lineno or 0, "function": entry.name, "source": (entry.line or "").strip()})
    if isinstance(error, SyntaxError) and error.filename and (path := relative(error.filename)) is not None:
        found.append({"path": path, "line": error.lineno or 0, "function": "", "source": (error.text or "").strip()})
    return found


def relative(filename: str) -> str | None:
    """The path below the project, None for files of libraries and of this runner."""
    full = os.path.realpath(filename)
    if (
        filename.startswith("<")
        or not full.startswith(ROOT + os.sep)
        or any(f"{os.sep}{name}{os.sep}" in full for name in LIBRARIES)
    ):
        return None
    return os.path.relpath(full, ROOT)


def explanation(error: BaseException | None, trace: TracebackType | None) -> str:
    """For a bare `assert` of the project: the values of its two sides, looked at again."""
    if not isinstance(error, AssertionError) or trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    statement = assert_at(frame, trace.tb_lineno)
    if statement is None:
        return ""
    test = statement.test
    parts: list[tuple[str, ast.expr]] = [("value", test)]
    if isinstance(test, ast.Compare) and len(test.comparators) == 1:
        parts = [("left", test.left), ("right", test.comparators[0])]
    lines = [f"assert {ast.unparse(test)}"] if hasattr(ast, "unparse") else []
    for label, expression in parts:
        value = evaluated(expression, frame)
        if value is not None and not isinstance(expression, ast.Constant):
            lines.append(f"{label} side is {value}" if label != "value" else f"its value is {value}")
    return "\n" + "\n".join(lines)


def assert_at(frame: FrameType, line: int) -> ast.Assert | None:
    if relative(frame.f_code.co_filename) is None:
        return None
    tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or node.lineno):
            return node
    return None


def evaluated(expression: ast.expr, frame: FrameType) -> str | None:
    """The repr of an expression in the frame; None when that fails."""
    values: list[str] = []
    code = compile(ast.Expression(expression), "<assert>", "eval")

    def look() -> None:
        values.append(repr(eval(code, frame.f_globals, frame.f_locals)))

    unittest.FunctionTestCase(look).run(unittest.TestResult())
    if not values:
        return None
    return values[0] if len(values[0]) <= VALUE_CHARS else values[0][:VALUE_CHARS] + "…"


def import_file(path: str) -> ModuleType:
    """As pytest does: by its package's dotted name, the folder above the topmost package being on sys.path."""
    full = Path(path).resolve()
    folder = full.parent
    names = [full.stem]
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    name = ".".join(names)
    known = sys.modules.get(name)
    if known is not None and os.path.realpath(getattr(known, "__file__", None) or "") != str(full):
        spec = importlib.util.spec_from_file_location(f"{name}_{len(sys.modules)}", full)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return importlib.import_module(name)


def cases_of(module: ModuleType, path: str) -> list[Case]:
    """The tests of a module in the order of their definition."""
    found: list[Case] = []
    for name, value in list(vars(module).items()):
        if inspect.isclass(value) and issubclass(value, unittest.TestCase) and value.__module__ == module.__name__:
            for method in unittest.defaultTestLoader.getTestCaseNames(value):
                found.append((f"{path}::{name}::{method}", value(method)))
        elif inspect.isclass(value) and name.startswith("Test") and value.__module__ == module.__name__:
            methods = [method for method in vars(value) if method.startswith("test") and callable(getattr(value, method))]
            found += [(f"{path}::{name}::{method}", method_case(value, method)) for method in methods]
        elif inspect.isfunction(value) and name.startswith("test"):
            found.append((f"{path}::{name}", function_case(value)))
    return found


def method_case(owner: Callable[[], object], name: str) -> unittest.TestCase:
    def run() -> None:
        instance = owner()
        method = getattr(instance, name)
        getattr(instance, "setup_method", lambda *_: None)(*([method] if takes_argument(instance, "setup_method") else []))
        try:
            call(method)
        finally:
            getattr(instance, "teardown_method", lambda *_: None)(
                *([method] if takes_argument(instance, "teardown_method") else [])
            )

    return unittest.FunctionTestCase(run)


def takes_argument(instance: object, name: str) -> bool:
    method = getattr(instance, name, None)
    return method is not None and bool(inspect.signature(method).parameters)


def function_case(function: Callable[..., object]) -> unittest.TestCase:
    return unittest.FunctionTestCase(lambda: call(function))


def call(function: Callable[..., object]) -> None:
    """Run a test function; of pytest's fixtures only tmp_path can be given."""
    required = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    ]
    if not required:
        function()
    elif required == ["tmp_path"]:
        with tempfile.TemporaryDirectory() as folder:
            function(tmp_path=Path(folder))
    else:
        raise RuntimeError(f"this test needs pytest for its fixtures ({', '.join(required)}), and pytest is not installed")


def main(report: str, pattern: str, targets: list[str]) -> int:
    sys.path[0] = ROOT
    ids: dict[int, str] = {}
    cases: list[Case] = []
    with open(report, "w", encoding="utf-8") as stream:
        recorder = Recorder(stream, ids)
        for target in targets:
            path, _, inside = target.partition("::")
            modules: list[ModuleType] = []
            loading = unittest.FunctionTestCase(lambda path=path, modules=modules: modules.append(import_file(path)))
            ids[id(loading)] = path
            loading.run(Loading(stream, ids))
            if not modules:
                continue
            wanted = target if inside else path
            cases += [
                (name, case)
                for name, case in cases_of(modules[0], path)
                if (name == wanted or name.startswith(wanted + "::")) and pattern.lower() in name.lower()
            ]
        ids.update({id(case): name for name, case in cases})
        suite = unittest.TestSuite(case for _, case in cases)
        suite.run(recorder)
        stream.write(json.dumps({"event": "done", "id": "", "message": "", "frames": []}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
