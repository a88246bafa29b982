"""run_project_tests on small projects in a real sandbox."""

from __future__ import annotations

import json
import os
import shutil
import sys
import venv
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kcode.tools.testing.report import Frame
from kcode.tools.testing.run import run_project_tests
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.environment import clean_environment
from kcode_sandbox.policy import Policy
from kcode_sandbox.sandbox import Sandbox

PYTHON = os.path.realpath(sys.executable)
CODE = "def half(x):\n    if x is None:\n        raise ValueError('x is None')\n    return x // 2\n"
UNITTEST = """import unittest
from halves import half

class HalfTest(unittest.TestCase):
    def test_even(self):
        self.assertEqual(half(4), 2)

    def test_odd(self):
        self.assertEqual(half(3), 1.5)

    def test_none(self):
        half(None)

    @unittest.skip("later")
    def test_later(self):
        pass
"""
FUNCTIONS = """from halves import half

def test_even():
    assert half(4) == 2

def test_odd():
    assert half(3) == 1.5

class TestMore:
    def test_zero(self):
        assert half(0) == 0
"""


def write(workspace: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def names_in(workspace: Path) -> list[str]:
    return sorted(path.name for path in workspace.rglob("*") if ".venv" not in path.parts)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path.resolve() / "project"
    folder.mkdir()
    return folder


@pytest.fixture
async def sandbox(workspace: Path) -> AsyncIterator[Sandbox]:
    opened = open_sandbox(Policy(workspace, environment=tuple(clean_environment(os.environ).items())))
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def plain_sandbox(workspace: Path) -> AsyncIterator[Sandbox]:
    """One whose python3 has no pytest: an interpreter of the project's own, empty environment."""
    venv.create(workspace / ".venv", symlinks=True)
    opened = open_sandbox(Policy(workspace, environment=tuple(clean_environment(os.environ).items())))
    await opened.start()
    yield opened
    await opened.close()


async def test_unittest_without_pytest(plain_sandbox: Sandbox, workspace: Path) -> None:
    write(workspace, {"halves.py": CODE, "test_half.py": UNITTEST})
    report = await run_project_tests(plain_sandbox, None, 60)
    assert (report.passed, report.failed, report.errors, report.skipped, report.problem) == (1, 1, 1, 1, "")
    none, odd = report.failing
    assert none.id == "test_half.py::HalfTest::test_none"
    assert none.message == "ValueError: x is None"
    assert none.frames == (
        Frame("test_half.py", 12, "test_none", "half(None)"),
        Frame("halves.py", 3, "half", "raise ValueError('x is None')"),
    )
    assert (odd.id, odd.message) == ("test_half.py::HalfTest::test_odd", "AssertionError: 1 != 1.5")
    assert names_in(workspace) == ["halves.py", "test_half.py"]


async def test_plain_functions_without_pytest_show_both_sides(plain_sandbox: Sandbox, workspace: Path) -> None:
    write(workspace, {"halves.py": CODE, "tests/test_half.py": FUNCTIONS})
    report = await run_project_tests(plain_sandbox, "tests", 60)
    assert (report.passed, report.failed) == (2, 1)
    assert report.failing[0].message == "AssertionError\nassert half(3) == 1.5\nleft side is 1"
    one = await run_project_tests(plain_sandbox, "tests/test_half.py::TestMore", 60)
    assert (one.passed, one.ok) == (1, True)
    named = await run_project_tests(plain_sandbox, None, 60, pattern="ODD")
    assert (named.passed, named.failed) == (0, 1)


async def test_packages_below_src_are_found(plain_sandbox: Sandbox, workspace: Path) -> None:
    write(workspace, {"src/halves.py": CODE, "tests/test_half.py": FUNCTIONS})
    assert (await run_project_tests(plain_sandbox, None, 60)).passed == 2
    (workspace / "src").rename(workspace / "lib")
    write(workspace, {"pyproject.toml": "[tool.pytest.ini_options]\npythonpath = ['lib']\n"})
    assert (await run_project_tests(plain_sandbox, None, 60)).passed == 2


async def test_what_needs_pytest_says_so(plain_sandbox: Sandbox, workspace: Path) -> None:
    write(workspace, {"test_a.py": "import pytest\n", "test_b.py": "def test_b(tmp_path, capsys):\n    pass\n"})
    report = await run_project_tests(plain_sandbox, None, 60)
    assert report.errors == 2
    assert report.failing[0].message == "ModuleNotFoundError: No module named 'pytest'"
    assert "needs pytest for its fixtures (tmp_path, capsys)" in report.failing[1].message


async def test_a_hanging_test_is_named(plain_sandbox: Sandbox, workspace: Path) -> None:
    write(workspace, {"test_a.py": "import time\n\ndef test_fast():\n    pass\n\ndef test_slow():\n    time.sleep(60)\n"})
    report = await run_project_tests(plain_sandbox, None, 1.5)
    assert report.problem == "The tests were stopped after 2 s, during test_a.py::test_slow."
    assert report.passed == 1
    assert not report.ok


async def test_a_crash_is_no_success(plain_sandbox: Sandbox, workspace: Path) -> None:
    write(workspace, {"test_a.py": "import os\n\ndef test_crash():\n    os._exit(0)\n"})
    report = await run_project_tests(plain_sandbox, None, 60)
    assert report.problem == "The run ended (exit code 0) during test_a.py::test_crash."


async def test_targets_that_do_not_exist_are_said(plain_sandbox: Sandbox, workspace: Path) -> None:
    write(workspace, {"tests/test_half.py": FUNCTIONS, "halves.py": CODE})
    report = await run_project_tests(plain_sandbox, "tests/test_hlaf.py", 60)
    assert report.problem == "there is no tests/test_hlaf.py; test files are: tests/test_half.py"
    # A wrong folder, a dotted name and a bare name are understood.
    for target in ("test_half.py::test_even", "tests.test_half.test_even", "test_even"):
        assert (await run_project_tests(plain_sandbox, target, 60)).passed == 1, target


async def test_an_empty_project_says_what_was_looked_for(sandbox: Sandbox) -> None:
    report = await run_project_tests(sandbox, None, 60)
    assert report.problem.startswith("no tests found: no Python test files")
    assert not report.ok


async def test_make_is_the_last_resort(sandbox: Sandbox, workspace: Path) -> None:
    write(workspace, {"Makefile": "test:\n\t@echo checking; false\n"})
    report = await run_project_tests(sandbox, None, 60)
    assert report.command == "make test"
    assert "ended with exit code 2" in report.problem
    assert "checking" in report.text()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
async def test_node_and_its_source_lines(sandbox: Sandbox, workspace: Path) -> None:
    test = (
        "const test = require('node:test');\nconst assert = require('node:assert');\n"
        "test('sums', () => {\n  assert.strictEqual(1 + 1, 3);\n});\n"
    )
    write(workspace, {"package.json": json.dumps({"scripts": {"test": "node --test *.test.js"}}), "sum.test.js": test})
    report = await run_project_tests(sandbox, None, 60)
    assert (report.passed, report.failed) == (0, 1)
    assert report.failing[0].frames == (Frame("sum.test.js", 4, "", "assert.strictEqual(1 + 1, 3);"),)
    write(workspace, {"sum.test.js": test.replace("3", "2")})
    assert (await run_project_tests(sandbox, "sum.test.js", 60)).ok


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
async def test_an_npm_script(sandbox: Sandbox, workspace: Path) -> None:
    write(
        workspace, {"package.json": json.dumps({"scripts": {"test": "echo 'Tests:       1 failed, 2 passed, 3 total'; exit 1"}})}
    )
    report = await run_project_tests(sandbox, None, 60)
    assert (report.command, report.passed, report.failed) == ("npm run test", 2, 1)


@pytest.fixture
async def pytest_sandbox(workspace: Path) -> AsyncIterator[Sandbox]:
    """One whose python3 is the interpreter of this test run, which has pytest."""
    environment = clean_environment(os.environ) | {"VIRTUAL_ENV": sys.prefix, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    opened = open_sandbox(Policy(workspace, environment=tuple(environment.items())))
    await opened.start()
    yield opened
    await opened.close()


async def test_pytest_with_fixtures_and_parameters(pytest_sandbox: Sandbox, workspace: Path) -> None:
    test = (
        "import pytest\nfrom halves import half\n\n"
        "@pytest.mark.parametrize('x', [2, None])\ndef test_half(x, tmp_path):\n"
        "    assert half(x) == 1\n\ndef test_lists():\n    assert [half(2), 5] == [1, 2]\n"
    )
    write(
        workspace,
        {"halves.py": CODE, "tests/test_half.py": test, "pytest.ini": "[pytest]\naddopts = --no-such-option\n"},
    )
    report = await run_project_tests(pytest_sandbox, None, 60)
    assert (report.command, report.passed, report.failed, report.problem) == ("pytest", 1, 2, "")
    half, lists = report.failing
    assert half.id == "tests/test_half.py::test_half[None]"
    assert half.message == "ValueError: x is None"
    assert [frame.path for frame in half.frames] == ["tests/test_half.py", "halves.py"]
    assert lists.message.startswith("AssertionError: assert [1, 5] == [1, 2]")
    again = await run_project_tests(pytest_sandbox, half.id, 60)
    assert (again.failed, again.passed) == (1, 0)
    assert names_in(workspace) == ["halves.py", "pytest.ini", "test_half.py", "tests"]


@pytest.mark.slow
async def test_pytest_that_hangs_names_the_test(pytest_sandbox: Sandbox, workspace: Path) -> None:
    write(workspace, {"test_a.py": "import time\n\ndef test_fast():\n    pass\n\ndef test_slow():\n    time.sleep(60)\n"})
    report = await run_project_tests(pytest_sandbox, None, 8)
    assert report.problem == "The tests were stopped after 8 s, during test_a.py::test_slow."
    assert report.passed == 1


def shim(folder: Path, command: str) -> str:
    """A folder for the PATH with a python3 that runs a shell command."""
    folder.mkdir(parents=True)
    program = folder / "python3"
    program.write_text(f'#!/bin/sh\n{command} "$@"\n')
    program.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("manager", ["whole", "broken"])
async def test_a_version_managers_shim_is_followed_or_passed_over(workspace: Path, manager: str) -> None:
    write(workspace, {"halves.py": CODE, "test_halves.py": FUNCTIONS})
    top = workspace.parent
    first = shim(top / "manager" / "shims", f"exec {top}/manager/libexec/python3" if manager == "whole" else "exit 127 #")
    shim(top / "manager" / "libexec", f"exec {PYTHON}")
    other = shim(top / "other", f"exec {PYTHON}")
    environment = clean_environment({"PATH": f"{first}:{other}:/usr/bin:/bin", "HOME": str(top / "home")})
    sandbox = open_sandbox(Policy(workspace, environment=tuple(environment.items())))
    await sandbox.start()
    try:
        report = await run_project_tests(sandbox, None, 60)
    finally:
        await sandbox.close()
    assert (report.passed, report.failed) == (2, 1), report


async def watched(sandbox: Sandbox, workspace: Path) -> None:
    """A loop without an end is a failed test with its place, the others run, and all say what they called."""
    endless = "def count(n):\n    while n:\n        try:\n            n += 1\n        except Exception:\n            pass\n"
    tests = "from loop import count\nfrom halves import half\n\n" + "".join(
        f"def test_{name}():\n    {code}\n\n"
        for name, code in [("half", "half(2)"), ("count", "count(half(2))"), ("zero", "count(0)")]
    )
    write(workspace, {"halves.py": CODE, "loop.py": endless, "test_loop.py": tests})
    report = await run_project_tests(sandbox, None, 120, calls_wanted=True, longest_test_s=0.5)
    assert (report.passed, report.failed + report.errors, report.problem) == (2, 1, "")
    (test,) = report.failing
    assert test.id == "test_loop.py::test_count"
    assert "it probably never ends" in test.message
    assert test.frames[-1].path == "loop.py"
    half, count = ("halves.py", 1), ("loop.py", 1)
    own = {("test_loop.py", line) for line in (4, 7, 10)}
    assert {run.test: (run.failed, run.places - own) for run in report.calls} == {
        "test_loop.py::test_half": (False, {half}),
        "test_loop.py::test_count": (True, {half, count}),
        "test_loop.py::test_zero": (False, {count}),
    }


async def test_pytest_tells_what_tests_call_and_ends_endless_ones(pytest_sandbox: Sandbox, workspace: Path) -> None:
    await watched(pytest_sandbox, workspace)


async def test_own_runner_tells_what_tests_call_and_ends_endless_ones(plain_sandbox: Sandbox, workspace: Path) -> None:
    await watched(plain_sandbox, workspace)
