"""What a repair may not contain: each file that would make tests pass, or run elsewhere, is refused with its reason."""

from __future__ import annotations

import pytest

from kcode.ci.repository import FileChange
from kcode.ci.rules import fault_by_exit_code, judge

OLD_TEST = """import unittest


class T(unittest.TestCase):
    def test_a(self):
        self.assertEqual(1, 1)
"""
NEW_TEST = "\n    def test_b(self):\n        self.assertEqual(2, 2)\n"


def changed(path: str, new: str | None, old: str | None = "x = 1\n", mode: str = "100644") -> FileChange:
    return FileChange(path, None if old is None else old.encode(), None if new is None else new.encode(), "100644", mode)


def faults(change: FileChange, command: str = "python3 -m pytest", *allowed: str) -> str:
    return " ".join(judge([change], command, allowed).faults)


@pytest.mark.parametrize(
    "path",
    [
        *("a.py", "src/pkg/core.py", "lib/run.js", "README.md", "pkg/json_tools.py", "pkg/json.py", "src/main.rs"),
        *("setup.py", "docs/conf.py", "pkg/contest.py", "latest.py", "pkg/attestation.py"),
    ],
)
def test_ordinary_code_may_change(path: str) -> None:
    assert faults(changed(path, "x = 2\n")) == ""
    assert faults(changed(path, "x = 2\n", old=None)) == ""


@pytest.mark.parametrize(
    "path",
    [
        *(".git/hooks/post-checkout", "sub/.git/config", ".GIT/config", ".gitmodules", ".gitattributes"),
        *(".github/workflows/x.yml", ".GitHub/actions/a/action.yml", ".gitlab-ci.yml", "Jenkinsfile", ".circleci/config.yml"),
        *("action.yml", "CODEOWNERS", ".pre-commit-config.yaml", ".husky/pre-commit", ".envrc", ".vscode/tasks.json", ".npmrc"),
        *("AGENTS.md", "pkg/CLAUDE.md", ".kcode/config.toml", ".claude/settings.json", ".devcontainer/devcontainer.json"),
        *("conftest.py", "tests/conftest.py", "pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", "package.json", "Makefile"),
        *("sitecustomize.py", "src/usercustomize.py", "evil.pth", "jest.config.mjs", "Cargo.toml", "noxfile.py", ".mocharc.json"),
        *("pytest.py", "unittest/__init__.py", "_pytest/runner.py", "json.py", "re/__init__.py"),
    ],
)
def test_what_steers_tests_ci_or_programs_may_not(path: str) -> None:
    assert faults(changed(path, "x = 2\n", old=None)) != ""


def test_a_pattern_opens_what_steers_but_never_git() -> None:
    assert faults(changed("pyproject.toml", ""), "pytest", "pyproject.toml") == ""
    assert faults(changed(".github/workflows/x.yml", ""), "pytest", ".github/*") == ""
    assert faults(changed(".git/config", ""), "pytest", "*") == ".git/config: it steers git"
    assert faults(changed("a", "/etc/passwd", mode="120000"), "pytest", "*") == "a: it is a symbolic link"
    assert faults(changed("a", "", mode="160000"), "pytest", "*") == "a: it is a submodule"


@pytest.mark.parametrize(
    ("new", "is_refused"),
    [
        (None, True),
        ("", True),
        (OLD_TEST.replace("1, 1", "1, 2"), True),
        (OLD_TEST.replace("def test_a", "def no_test_a"), True),
        (OLD_TEST.replace("    def test_a", "    @unittest.skip('x')\n    def test_a"), True),
        (OLD_TEST.replace("unittest.TestCase", "object"), True),
        (OLD_TEST + NEW_TEST.replace("test_b", "test_a"), True),
        (OLD_TEST + "\nunittest.TestCase.assertEqual = print\n", True),
        (OLD_TEST + "\n    def setUp(self):\n        self.skipTest('x')\n", True),
        ("import sys\n" + OLD_TEST, True),
        (OLD_TEST + "\n\nclass T(unittest.TestCase):\n    pass\n", True),
        (OLD_TEST + "def broken(", True),
        (OLD_TEST + NEW_TEST, False),
        (OLD_TEST.replace("        self", "        # why\n        self"), False),
        (OLD_TEST + "\n\ndef test_more():\n    assert True\n", False),
    ],
)
def test_tests_may_be_added_and_nothing_else(new: str | None, is_refused: bool) -> None:
    assert bool(faults(changed("tests/test_a.py", new, OLD_TEST))) is is_refused
    if new is None or is_refused:
        assert faults(changed("tests/test_a.py", new, OLD_TEST), "pytest", "tests/*") == ""


@pytest.mark.parametrize("path", ["app/tests.py", "test.py", "src/CartTest.java", "cart-test.js", "a.test.ts", "spec/a_spec.rb"])
def test_tests_are_known_by_many_names(path: str) -> None:
    assert "a test is changed" in faults(changed(path, "x = 2\n"))


def test_a_new_file_that_a_test_program_would_collect_does_not_decide() -> None:
    helper = changed("testing_everything.py", "x = 1\n", old=None)
    assert judge([helper], "python3 -m unittest", ()).tests == (helper,)
    assert judge([changed("testimonials.py", "x = 2\n")], "python3 -m unittest", ()).tests == ()


def test_changes_of_tests_are_told_apart_since_they_must_not_decide() -> None:
    tests = changed("tests/test_new.py", OLD_TEST, old=None)
    verdict = judge([changed("a.py", "x = 2\n"), tests], "pytest", ())
    assert (verdict.faults, verdict.tests) == ((), (tests,))


@pytest.mark.parametrize(
    "line",
    [
        *("import os; os._exit(0)", "from os import _exit", "import pytest", "from unittest import TestCase", "import atexit"),
        *(
            "if 'PYTEST_CURRENT_TEST' in os.environ: pass",
            "sys.modules['pytest'].fail = print",
            "sys.exit(0)",
            "raise SystemExit",
        ),
        *(
            "inspect.stack()",
            "sys._getframe(1)",
            "import ctypes",
            "os.kill(os.getpid(), 9)",
            "quit()",
            "os.execv('/bin/true', [])",
        ),
        *("open('/proc/self/cmdline')", "if 'test' in sys.argv[0]: pass", "builtins.AssertionError = Warning"),
        *("__import__('uni' + 'ttest')", "exec('x')", "case.TestCase.run = print", "load_tests = print"),
    ],
)
def test_code_that_reaches_for_the_tests_is_refused(line: str) -> None:
    assert faults(changed("a.py", f"x = 1\n{line}\n")) != ""
    assert faults(changed("a.py", f"x = 1\n{line}\n", old=f"{line}\nx = 3\n")) == "", "it was there before"


def test_a_program_may_end_itself_in_its_own_functions() -> None:
    code = "import sys\n\n\ndef main():\n    sys.exit(2)\n\n\nif __name__ == '__main__':\n    sys.exit(main())\n"
    assert faults(changed("a.py", code)) == ""


def test_what_the_command_names_may_not_change() -> None:
    assert "the test command names it" in faults(changed("ci/check.sh", "true"), "cd ci && ./check.sh --all")
    assert "the test command names it" in faults(changed("check.py", "x = 2"), "python3 check.py")
    assert faults(changed("a", "x = 2"), "make a-test") == ""


def test_scripts_may_not_change_where_only_an_exit_code_tells() -> None:
    changes = [changed("a.c", "int x;"), changed("bin/run", "#!/bin/sh\nexit 0\n")]
    assert "bin/run may be what runs them" in fault_by_exit_code(changes, ())
    assert fault_by_exit_code(changes, ("bin/*",)) == ""
    assert fault_by_exit_code(changes[:1], ()) == ""


def test_a_flood_of_files_is_refused() -> None:
    assert "at most 200" in " ".join(judge([changed(f"{n}.py", "") for n in range(201)], "pytest", ()).faults)
