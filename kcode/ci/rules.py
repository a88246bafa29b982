"""What a repair may not contain, whoever wrote it: weakened tests, files that steer what runs, code that knows of its tests.

The rules look at the commit itself, on the host, and nothing in the repository or the task changes them; `allowed` are patterns
of paths that the user named.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from kcode.ci.repository import FileChange
from kcode.repomap import TEST_PATH
from kcode_sandbox.guard import HELD_NAMES

# Never, also when a pattern allows them.
GIT_NAMES = frozenset({".git", ".gitmodules"})
STEERING_FOLDERS = frozenset(
    {
        *HELD_NAMES,
        ".github",
        ".gitlab",
        ".circleci",
        ".buildkite",
        ".woodpecker",
        ".husky",
        ".githooks",
        ".devcontainer",
        ".teamcity",
    }
)
STEERING_FILES = frozenset(
    {
        *(".gitlab-ci.yml", ".travis.yml", "azure-pipelines.yml", "bitbucket-pipelines.yml", ".drone.yml", "appveyor.yml"),
        *("jenkinsfile", "action.yml", "action.yaml", "codeowners", "agents.md", "claude.md", "gemini.md", ".cirrus.yml"),
        *(".pre-commit-config.yaml", "lefthook.yml", ".npmrc", ".yarnrc", ".yarnrc.yml", ".pypirc", "pip.conf", ".gitattributes"),
        *(".env", ".tool-versions", "mise.toml", ".mise.toml"),
    }
)
TEST_SETTINGS = (
    *("conftest.py", "pytest.ini", ".pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", "noxfile.py", "pytest.toml"),
    *("sitecustomize.py", "usercustomize.py", "*.pth", ".coveragerc", "package.json", "package-lock.json", "makefile"),
    *("jest.config.*", "jest.setup.*", "vitest.config.*", "vitest.setup.*", "karma.conf.*", ".mocharc*", "justfile", "build.rs"),
    *("cargo.toml", ".cargo", "go.mod", "gemfile", "rakefile", ".rspec", "phpunit.xml*", "cmakelists.txt"),
)
# Beyond the places where a repository's map expects tests: tests.py, FooTest.java, some-tests.js.
TEST_NAME = re.compile(r"(?:^|[._-])tests?\.\w+$|[a-z\d]Tests?\.\w+$")
RUNNERS = frozenset({"pytest", "_pytest", "unittest", "pluggy", "nose", "tox", "coverage", "hypothesis", "node_modules"})
# What lets code find out that it is tested, change what tests it, or end the program before a test can fail.
KNOWS_TESTS = re.compile(
    r"PYTEST_|_pytest\b|\bsys\.(?:modules|_getframe|settrace|setprofile|argv)\b|\batexit\b|\bctypes\b|__builtins__|\bbuiltins\b"
    r"|\bos\._exit\b|\bos\.(?:abort|kill|killpg|exec\w+|posix_spawn\w*|dup2)\b|\binspect\.(?:stack|currentframe|getouterframes)\b"
    r"|^\s*(?:import|from)\s+(?:pytest|unittest|_pytest|nose|ctypes|atexit|builtins)\b|\bgc\.get_|\b_exit\b|/proc/"
    r"|\bTestCase\b|\.assert[A-Z]|\b__import__\b|\bimport_module\b|\b(?:exec|eval)\(|\bload_tests\b"
    r"|NODE_TEST_CONTEXT|JEST_WORKER_ID|VITEST|\bprocess\.(?:exit\w*|reallyExit|kill|abort|argv)\b|node:test|child_process"
    r"|cfg!?\(test\)|\btesting\.Testing\(\)|\bos\.Exit\(|\bprocess::(?:exit|abort)\b"
)
# What is run as it stands where a module is imported; within a function it is a matter of the program's.
ENDS = frozenset({"exit", "quit", "SystemExit", "_exit"})
SCRIPTS = (".sh", ".bash", ".zsh", ".bat", ".cmd", ".ps1", ".mk")
MAX_FILES = 200
MAX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """`faults` are why the change is refused; `tests` are its changes to tests, which must not decide whether it repairs."""

    faults: tuple[str, ...]
    tests: tuple[FileChange, ...]


def judge(changes: Sequence[FileChange], command: str, allowed: Sequence[str]) -> Verdict:
    """`command` is what runs the tests: what it names must not change either."""
    faults: list[str] = []
    if len(changes) > MAX_FILES:
        faults.append(f"it changes {len(changes)} files, at most {MAX_FILES} are reviewed")
    if sum(len(change.new or b"") for change in changes) > MAX_BYTES:
        faults.append(f"its files have more than {MAX_BYTES} bytes")
    tests: list[FileChange] = []
    for change in changes:
        name = change.path.rpartition("/")[2]
        is_test = bool(TEST_PATH.search(change.path) or TEST_NAME.search(name))
        # Test programs collect new files by the beginning of their names.
        if is_test or (change.old is None and name.lower().startswith("test")):
            tests.append(change)
        fault = _never(change) or ("" if _matches(change.path, allowed) else _fault(change, command, is_test=is_test))
        if fault:
            faults.append(f"{change.path}: {fault}")
    return Verdict(tuple(faults), tuple(tests))


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _never(change: FileChange) -> str:
    parts = [part.lower() for part in change.path.split("/")]
    if GIT_NAMES & set(parts):
        return "it steers git"
    if change.mode == "160000" or change.old_mode == "160000":
        return "it is a submodule"
    return "it is a symbolic link" if change.mode == "120000" else ""


def _fault(change: FileChange, command: str, *, is_test: bool) -> str:
    parts = [part.lower() for part in change.path.split("/")]
    if STEERING_FOLDERS & set(parts) or parts[-1] in STEERING_FILES:
        return "it steers programs or the project's CI; --allow PATTERN lets it change"
    if any(fnmatchcase(part, pattern) for part in parts for pattern in TEST_SETTINGS):
        return "it steers how the tests run; --allow PATTERN lets it change"
    if not is_test and _is_named(change.path, command):
        return "the test command names it; --allow PATTERN lets it change"
    if change.old is None and _shadows(parts):
        return "it would stand before a module of the test program or of Python itself"
    if is_test:
        return _weakened(change)
    return _knows_tests(change)


def _is_named(path: str, command: str) -> bool:
    """Whether a word of the command is the file, as seen from the top or from some folder above it."""
    words = [word.removeprefix("./") for word in re.split(r"[\s;&|()'\"=]+", command)]
    return any(path == word or ("." in word and path.endswith(f"/{word}")) for word in words)


def _shadows(parts: Sequence[str]) -> bool:
    if parts[-1].endswith((".py", ".so", ".pyc")) or len(parts) > 1:
        name = parts[0].partition(".")[0]
        return name in RUNNERS or (name in sys.stdlib_module_names and parts[0] != "test")
    return False


def _weakened(change: FileChange) -> str:
    """A test may be new, or get new test functions beside the old ones; everything else may make it test less."""
    if change.old is None:
        return ""
    if change.new is None:
        return "a test is deleted"
    if change.path.endswith(".py") and _only_adds_tests(change.old, change.new):
        return ""
    return "a test is changed; new tests may only be added; --allow PATTERN lets it change"


def _only_adds_tests(old: bytes, new: bytes) -> bool:
    try:
        before, after = ast.parse(old), ast.parse(new)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _extends(before.body, after.body)


def _extends(before: Sequence[ast.stmt], after: Sequence[ast.stmt]) -> bool:
    """Whether `after` is `before` with new test functions in between, under names that are not there otherwise."""
    names = {node.name for node in before if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    left = list(before)
    for node in after:
        if left and ast.dump(node) == ast.dump(left[0]):
            left.pop(0)
        elif left and isinstance(node, ast.ClassDef) and isinstance(old := left[0], ast.ClassDef) and _same_class(old, node):
            if not _extends(old.body, node.body):
                return False
            left.pop(0)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not _is_new_test(node.name, names):
            return False
        else:
            names.add(node.name)
    return not left


def _is_new_test(name: str, known: set[str]) -> bool:
    return name.startswith("test") and name not in known


def _same_class(before: ast.ClassDef, after: ast.ClassDef) -> bool:
    def head(node: ast.ClassDef) -> list[str]:
        return [node.name, *(ast.dump(part) for part in (*node.bases, *node.keywords, *node.decorator_list))]

    return head(before) == head(after)


def _knows_tests(change: FileChange) -> str:
    """Code that asks whether it is tested, or ends the program, can make tests pass without repairing anything."""
    known = set((change.old or b"").splitlines())
    for number, line in enumerate((change.new or b"").splitlines(), 1):
        if line not in known and KNOWS_TESTS.search(line.decode("utf-8", errors="replace")):
            return f"line {number} reaches for the tests or the program around it; --allow PATTERN lets it"
    if change.path.endswith(".py") and _endings(change.new) > _endings(change.old):
        return "it ends the program where it is imported; --allow PATTERN lets it"
    return ""


def _endings(source: bytes | None) -> int:
    """How often a module's own level, and that of its classes, names what ends a program."""
    try:
        pending: list[ast.AST] = [ast.parse(source or b"")]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0
    count = 0
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_main(node):
            continue
        count += (isinstance(node, ast.Name) and node.id in ENDS) or (isinstance(node, ast.Attribute) and node.attr in ENDS)
        pending += ast.iter_child_nodes(node)
    return count


def _is_main(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.dump(node.test)


def fault_by_exit_code(changes: Sequence[FileChange], allowed: Sequence[str]) -> str:
    """Why an exit code alone shows nothing: scripts changed, which may be what runs the tests."""
    scripts = [change.path for change in changes if not _matches(change.path, allowed) and _is_script(change)]
    return (
        f"only the exit code tells of the tests, and {scripts[0]} may be what runs them; --allow PATTERN lets it"
        if scripts
        else ""
    )


def _is_script(change: FileChange) -> bool:
    return change.path.lower().endswith(SCRIPTS) or change.mode == "100755" or (change.new or b"").startswith(b"#!")
