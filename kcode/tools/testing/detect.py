"""Which command runs a project's tests: from the files it has, and from what is installed where it will run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from kcode.tools.testing.targets import PythonTarget, is_python_test, python_target
from kcode_sandbox.sandbox import Sandbox

Framework = Literal["pytest", "plain", "node", "go", "cargo", "text"]
Ecosystem = Literal["python", "node", "cargo", "go", "make"]

PROBE_TIMEOUT_S = 30.0
LONGEST_TEST_S = 20.0
# The name of observer.py inside, where it must not be taken for a module of the project.
OBSERVER = "kcode_test_observer.py"
VIRTUAL_ENVIRONMENTS = (".venv", "venv", "env")
ECOSYSTEM_OF_SUFFIX: dict[str, Ecosystem] = {
    "py": "python",
    **dict.fromkeys(("js", "mjs", "cjs", "jsx", "ts", "tsx", "mts", "cts"), "node"),
    "rs": "cargo",
    "go": "go",
}
# npm writes this script into a new package.json; it tests nothing.
NPM_PLACEHOLDER = "no test specified"
NODE_TEST = re.compile(r"^node\s+(?:\S+\s+)*?--test\b(?P<rest>[^&|;]*)$")


@dataclass(frozen=True, slots=True)
class TestPlan:
    """What to run. `shown` is the command as a person would type it; `report` is a file inside with exact results, or ""."""

    __test__ = False

    framework: Framework
    argv: tuple[str, ...]
    shown: str
    environment: dict[str, str] = field(default_factory=dict[str, str])
    report: str = ""


@dataclass(frozen=True, slots=True)
class NoPlan:
    """Why there is nothing to run, and what would help."""

    problem: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What part of the tests: `target` is a path or test id, `pattern` a part of names, "" is all; `scratch` is a folder.

    Only Python's tests heed the rest: `calls` asks which functions each test calls, and `longest_test_s` of processor time is
    what a single test may take.
    """

    target: str
    pattern: str
    scratch: str
    calls: bool = False
    longest_test_s: float = LONGEST_TEST_S

    @property
    def plugins(self) -> str:
        """The folder of what is loaded into the test program."""
        return f"{self.scratch}/plugins"

    @property
    def calls_path(self) -> str:
        return f"{self.scratch}/calls.jsonl"


async def find_plan(sandbox: Sandbox, wanted: Wanted) -> TestPlan | NoPlan:
    """The plan for the workspace of `sandbox`."""
    paths = [stat.path for stat in await sandbox.list_files(".")]
    known = set(paths)
    found = await ecosystems(sandbox, known)
    asked = ECOSYSTEM_OF_SUFFIX.get(wanted.target.partition("::")[0].rpartition(".")[2]) if wanted.target else None
    chosen = asked if asked in found or asked == "python" else next(iter(found), None)
    match chosen:
        case "python":
            return await python_plan(sandbox, paths, wanted)
        case "node":
            return await node_plan(sandbox, known, wanted)
        case "cargo":
            return cargo_plan(known, wanted)
        case "go":
            return go_plan(wanted)
        case "make":
            return TestPlan("text", ("make", "test"), "make test")
        case None:
            return NoPlan(
                "no tests found: no Python test files, no test script in package.json, no Cargo.toml, go.mod, or Makefile with "
                "a test target; run the right command with bash"
            )


async def ecosystems(sandbox: Sandbox, known: set[str]) -> list[Ecosystem]:
    """Those with tests, the likeliest first: the one whose manifest is at the top of the workspace."""
    found: list[Ecosystem] = []
    if any(is_python_test(path) for path in known):
        found.append("python")
    if await node_script(sandbox, known) or any(is_node_test(path) for path in known):
        found.append("node")
    if "Cargo.toml" in known:
        found.append("cargo")
    if "go.mod" in known:
        found.append("go")
    if "Makefile" in known and re.search(r"^test\s*:", await text_of(sandbox, "Makefile"), re.MULTILINE):
        found.append("make")
    # A Python script or two with a test in a JavaScript, Rust or Go project do not make it a Python project.
    if "python" in found and len(found) > 1 and not known & {"pyproject.toml", "setup.py", "setup.cfg", "pytest.ini", "tox.ini"}:
        native: list[Ecosystem] = [name for name in found if name in {"node", "cargo", "go"}]
        found = [*native, *(name for name in found if name not in native)]
    return found


async def text_of(sandbox: Sandbox, path: str) -> str:
    return (await sandbox.read(path, max_bytes=1 << 20)).data.decode(errors="replace")


async def python_plan(sandbox: Sandbox, paths: Sequence[str], wanted: Wanted) -> TestPlan | NoPlan:
    python, has_pytest = await find_python(sandbox)
    if not python:
        return NoPlan("no Python interpreter in the sandbox: neither .venv, venv nor python3 on the PATH can be run")
    target = python_target(wanted.target, wanted.pattern, paths)
    if isinstance(target, str):
        return NoPlan(target)
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", "PY_COLORS": "0"}
    quiet |= {"HYPOTHESIS_STORAGE_DIRECTORY": f"{wanted.scratch}/hypothesis", "COVERAGE_FILE": f"{wanted.scratch}/coverage"}
    quiet["KCODE_LONGEST_TEST_S"] = str(wanted.longest_test_s)
    if wanted.calls:
        quiet["KCODE_CALLS"] = wanted.calls_path
    folders = await import_folders(sandbox, set(paths))
    inherited = dict(sandbox.policy.environment).get("PYTHONPATH")
    quiet["PYTHONPATH"] = ":".join([wanted.plugins, *folders, *([inherited] if inherited else [])])
    if has_pytest:
        return pytest_plan(python, target, wanted, quiet)
    return plain_plan(python, target, paths, wanted, quiet)


async def import_folders(sandbox: Sandbox, known: set[str]) -> list[str]:
    """Where the project's own packages are besides its top: a `src` that is no package, and pytest's `pythonpath`."""
    names: list[str] = []
    if any(path.startswith("src/") and path.endswith(".py") for path in known) and "src/__init__.py" not in known:
        names.append("src")
    if "pyproject.toml" in known:
        found = re.search(r"^pythonpath\s*=\s*(.+)$", await text_of(sandbox, "pyproject.toml"), re.MULTILINE)
        names += re.findall(r"[\"']([^\"']+)[\"']", found[1]) if found else []
    return [f"{sandbox.policy.workspace}/{name}" for name in dict.fromkeys(names)]


def pytest_plan(python: str, target: PythonTarget, wanted: Wanted, environment: dict[str, str]) -> TestPlan:
    report = f"{wanted.scratch}/junit.xml"
    chosen = [*target.ids, *(["-k", target.pattern] if target.pattern else [])]
    options = ["-v", "--tb=short", "-p", "no:cacheprovider", "--color=no", "--continue-on-collection-errors", "--maxfail=100"]
    watch = ("-p", OBSERVER.removesuffix(".py"))
    argv = (python, "-m", "pytest", *watch, *options, "-o", "junit_family=xunit1", f"--junitxml={report}", *chosen)
    return TestPlan("pytest", argv, " ".join(["pytest", *chosen]), environment, report)


def plain_plan(
    python: str, target: PythonTarget, paths: Sequence[str], wanted: Wanted, environment: dict[str, str]
) -> TestPlan | NoPlan:
    """Without pytest: kcode's own runner for unittest cases and plain test functions."""
    report = f"{wanted.scratch}/plain.jsonl"
    chosen: list[str] = []
    for name in target.ids or (".",):
        path = name.partition("::")[0].removeprefix("./").rstrip("/")
        below = [entry for entry in paths if is_python_test(entry) and (path in {"", "."} or entry.startswith(path + "/"))]
        chosen += [name] if path in paths or path.startswith("/") else sorted(below)
    if not chosen:
        return NoPlan("no Python test files (test_*.py, *_test.py)" + (f" below {wanted.target}" if wanted.target else ""))
    runner = f"{wanted.plugins}/plain_runner.py"
    argv = (python, "-B", runner, report, target.pattern, *chosen)
    shown = " ".join(["python tests (without pytest)", *target.ids, *([f"-k {target.pattern}"] if target.pattern else [])])
    return TestPlan("plain", argv, shown, environment, report)


async def find_python(sandbox: Sandbox) -> tuple[str, bool]:
    """The project's interpreter and whether it has pytest: its own environment first, then one on the PATH with pytest.

    A project environment without pytest still wins over a stranger's pytest: the project's packages live there.
    """
    look = "import sys, importlib.util; sys.exit(importlib.util.find_spec('pytest') is None)"
    probes = "; ".join(f'try "$PWD/{folder}/bin/python"' for folder in VIRTUAL_ENVIRONMENTS)
    script = (
        'try() { [ -x "$1" ] && "$1" -c "" 2>/dev/null || return 1; '
        f'if "$1" -c "{look}" 2>/dev/null; then echo "yes $1"; exit; fi; '
        '[ -n "$2" ] && { [ -n "$found" ] || found=$1; return 0; }; echo "no $1"; exit; }; found=; '
        f'{probes}; [ -n "$VIRTUAL_ENV" ] && try "$VIRTUAL_ENV/bin/python"; '
        # The first that runs: a version manager's shim may have nothing to hand on to.
        'IFS=:; for name in python3 python; do for folder in $PATH; do try "$folder/$name" weak && break; done; done; '
        '[ -n "$found" ] && echo "no $found"'
    )
    result = await sandbox.exec(
        ["sh", "-c", script],
        timeout_s=PROBE_TIMEOUT_S,
        environment={"PYTHONDONTWRITEBYTECODE": "1"},
        separate_stderr=True,
    )
    answer, _, python = result.output.decode(errors="replace").strip().partition(" ")
    return python, answer == "yes"


async def node_script(sandbox: Sandbox, known: set[str]) -> str:
    """The test script of package.json; "" when there is none that tests anything."""
    if "package.json" not in known:
        return ""
    try:
        loaded = cast("object", json.loads(await text_of(sandbox, "package.json")))
    except json.JSONDecodeError:
        return ""
    scripts = cast("dict[str, object]", loaded).get("scripts") if isinstance(loaded, dict) else None
    script = cast("dict[str, object]", scripts).get("test") if isinstance(scripts, dict) else None
    return script if isinstance(script, str) and NPM_PLACEHOLDER not in script else ""


def is_node_test(path: str) -> bool:
    return re.search(r"(?:^|/)(?:test/.*|.*[.-]test|test-.*|test)\.[cm]?js$", path) is not None and "node_modules/" not in path


async def node_plan(sandbox: Sandbox, known: set[str], wanted: Wanted) -> TestPlan:
    """`node --test` directly, for its exact output, when that is what the test script does; else the script."""
    script = await node_script(sandbox, known)
    environment = {"NO_COLOR": "1", "FORCE_COLOR": "0", "CI": "1"}
    native = NODE_TEST.match(script.strip())
    target = [wanted.target] if wanted.target else []
    if native is not None or not script:
        named = ["--test-name-pattern", wanted.pattern] if wanted.pattern else []
        given = native["rest"].strip() if native is not None and not target else ""
        argv: tuple[str, ...] = ("node", "--test", "--test-reporter=tap", *named, *target)
        if given:
            # The script's own words may hold globs and quotes, which are for a shell.
            argv = ("sh", "-c", f'exec "$@" {given}', "sh", *argv)
        return TestPlan("node", argv, " ".join(["node --test", *named, *target, *([given] if given else [])]), environment)
    program = "pnpm" if "pnpm-lock.yaml" in known else "yarn" if "yarn.lock" in known else "npm"
    pattern = ["-t", wanted.pattern] if wanted.pattern and re.search(r"\b(?:jest|vitest)\b", script) else []
    extra = [*target, *pattern]
    argv = (program, "run", "test", *(["--", *extra] if extra and program != "yarn" else extra))
    return TestPlan("text", argv, " ".join(argv), environment)


def cargo_plan(known: set[str], wanted: Wanted) -> TestPlan:
    name = wanted.pattern or (wanted.target if not wanted.target.endswith(".rs") else "")
    integration = re.match(r"^tests/(\w+)\.rs$", wanted.target)
    chosen = [*(["--test", integration[1]] if integration else []), *([name] if name else [])]
    # Built outside the repository: a target folder that git does not ignore would show up as changes.
    environment = {"CARGO_TARGET_DIR": f"{wanted.scratch}/target", "CARGO_TERM_COLOR": "never", "RUST_BACKTRACE": "0"}
    locked = ["--locked"] if "Cargo.lock" in known else []
    return TestPlan(
        "cargo", ("cargo", "test", "--no-fail-fast", *locked, *chosen), " ".join(["cargo test", *chosen]), environment
    )


def go_plan(wanted: Wanted) -> TestPlan:
    target = wanted.target
    package = "./..."
    named = wanted.pattern
    if target.endswith(".go"):
        package = "./" + target.rpartition("/")[0]
    elif target.startswith("Test"):
        named = target
    elif target:
        package = target if target.startswith(".") else "./" + target
    chosen = [*(["-run", named] if named else []), package]
    return TestPlan("go", ("go", "test", "-json", *chosen), " ".join(["go test", *chosen]))
