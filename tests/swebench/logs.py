"""Test runs as the runners of SWE-bench Verified's repositories write them, made up of the forms in which their parsers differ.

They come out the same each time, so what the official package says of them can be kept (official_answers.json).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from kcode_bench.swe.grading import Apply, TestLog
from kcode_bench.swe.rows import Row
from kcode_bench.swe.trial import END, START, whole_log

PER_REPOSITORY = 30
PARSERS = {
    "astropy/astropy": "parse_log_astropy",
    "django/django": "parse_log_django",
    "matplotlib/matplotlib": "parse_log_matplotlib",
    "mwaskom/seaborn": "parse_log_seaborn",
    "pallets/flask": "parse_log_flask",
    "psf/requests": "parse_log_requests",
    "pydata/xarray": "parse_log_xarray",
    "pylint-dev/pylint": "parse_log_pylint",
    "pytest-dev/pytest": "parse_log_pytest",
    "scikit-learn/scikit-learn": "parse_log_scikit",
    "sphinx-doc/sphinx": "parse_log_sphinx",
    "sympy/sympy": "parse_log_sympy",
}
PARAMETERS = (
    *(
        "",
        "[1-2]",
        "[/tmp/pytest-0/a/b.py]",
        "[//host/share]",
        "[/usr/*/x]",
        "[a - b]",
        "[two words]",
        "[log(photon]",
        "[[nested]]",
    ),
    *("[MouseButton.LEFT-MouseButton.RIGHT]", "[caf\u00e9]", "[x\\ny]", "[a[0]-b]", "[PASSED]", "[ERROR - 1]"),
)
STATUSES = ("PASSED", "PASSED", "PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS")
NOISE = (
    *(
        "PASSED [100%]",
        "SKIPPED [3] tests/test_a.py:7: no display",
        "ERROR: not found: /testbed/tests/gone.py",
        "FAILED",
        "PASSEDX x",
    ),
    *(
        "ERROR    root:app.py:12 the request was refused",
        "XFAILED tests/test_b.py::test_old",
        "=== 3 passed, 1 failed in 0.12s ===",
    ),
    *(
        "collected 0 items",
        "ModuleNotFoundError: No module named 'x'",
        "Killed",
        "tests/test_a.py::test_one",
        "  PASSED indented",
    ),
    *("ok", "  ok  ", "--version is equivalent to version ... ok", "FAIL: test_alone", "a ... b ... ok", "12 passing", ""),
    *("downloading  10%\rdownloading 100%\rPASSED tests/test_a.py::test_after_progress", "no end of line follows\x00"),
    *("_____ test_f _____", "________ sympy/core/tests/test_args.py:test_f ________", " x.py:y ", "test_with_words and more F"),
    *("\x1b[32mPASSED\x1b[0m tests/test_c.py::\x1b[1mtest_green\x1b[0m", "tests/test_c.py::test_old_style \x1b[31mFAILED\x1b[0m"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One instance's test run. `log` is what kcode keeps of it; the official harness reads its text."""

    name: str
    row: Row
    log: TestLog


def cases() -> list[Case]:
    return [_case(repo, number) for repo in PARSERS for number in range(PER_REPOSITORY)]


def _case(repo: str, number: int) -> Case:
    random = Random(f"{repo} {number}")
    tests, lines = WRITERS.get(repo, _pytest)(random)
    for _ in range(random.choice((0, 0, 1, 2, 3))):
        lines.insert(random.randrange(len(lines) + 1), random.choice(NOISE))
    apply: Apply = "failed" if number == 0 else "applied"
    ended = number != 1
    clean = not any(line.startswith(("FAILED", "ERROR", "FAIL:")) for line in lines)
    exit_code = random.choice((0, 0, 0, 1) if clean else (1, 1, 0, 4)) if ended else None
    ending = random.choice(("\n", "", "\r\n"))
    before = f"+ git apply --verbose -\nChecking patch a.py...\n{START}+ run the tests\n"
    log = whole_log(apply, before, ("\n".join(lines) + ending).encode(), exit_code, 1800)
    if apply == "failed":
        log = TestLog("failed", "", 0, "error: patch failed: a.py:1\n>>>>> Patch Apply Failed\n")
    random.shuffle(tests)
    half = len(tests) // 2
    row = {
        "repo": repo,
        "instance_id": f"{repo.replace('/', '__')}-{number}",
        "base_commit": "0" * 40,
        "test_patch": "x",
        "problem_statement": "x",
        "log_parser": PARSERS[repo],
        "eval_type": "fail_only" if number == 2 else "pass_and_fail",
        "FAIL_TO_PASS": _named(random, tests[:half]) or ["test_never_seen"],
        "PASS_TO_PASS": _named(random, tests[half:]),
    }
    return Case(str(row["instance_id"]), Row.model_validate(row), log)


def _named(random: Random, tests: list[str]) -> list[str]:
    """Some of them; some cut within their parameters, as many are in the data set, and now and then one that never ran."""
    found = [name for name in tests if random.random() < 0.7]
    found = [name[: name.index("[") + 3] if "[" in name and random.random() < 0.3 else name for name in found]
    return [*found, "test_never_seen"] if random.random() < 0.1 else found


def _pytest(random: Random) -> tuple[list[str], list[str]]:
    """Progress, captured output, and the short summary of -rA. Half of the runs are without failures."""
    statuses = STATUSES if random.random() < 0.5 else ("PASSED", "PASSED", "PASSED", "XFAIL")
    names = [
        f"tests/test_{random.choice('abc')}.py::test_{index}{random.choice(PARAMETERS)}"
        for index in range(random.randrange(1, 12))
    ]
    found = [(name, random.choice(statuses)) for name in names]
    lines = ["============ test session starts ============", f"collected {len(found)} items", ""]
    if random.random() < 0.3:
        lines += [f"{name} {status} [{index * 7 % 100:3d}%]" for index, (name, status) in enumerate(found)]
    if random.random() < 0.2:
        # Old versions: the status behind the name and nothing after it.
        return [name for name, _ in found], [*lines, *(f"{name} {status}" for name, status in found)]
    lines.append("=========== short test summary info ============")
    for name, status in found:
        reason = random.choice(("", " - AssertionError: assert 1 == 2", " - a - b", " some reason")) if status != "PASSED" else ""
        coloured = f"\x1b[31m{status}\x1b[0m" if random.random() < 0.15 else status
        lines.append(f"{coloured} {name}{reason}")
    return names, lines


def _django(random: Random) -> tuple[list[str], list[str]]:
    """unittest -v 2, with the lines that Django prints between a test's name and its end."""
    lines, names = ["Testing against Django installed in '/testbed/django' with up to 2 processes"], list[str]()
    fails = random.random() < 0.5
    for index in range(random.randrange(1, 12)):
        name = f"test_{index} (app.tests.{random.choice(('One', 'Two'))}Tests)"
        names.append(name)
        ends = ["ok", "ok", "OK", " OK", "skipped 'no database'", "expected failure", *(("FAIL", "ERROR") if fails else ())]
        end = random.choice(ends)
        match random.randrange(6):
            case 0:
                lines += [name, f"What it is about. ... {end}"]
            case 1:
                lines += [f"{name} ... System check identified no issues (0 silenced)", "ok"]
            case 2:
                lines += [f"{name} ... Internal Server Error: /page/", "ok"]
            case 3:
                lines += [f"{name} ... printed by the test", "more of it", "ok"]
            case _:
                lines.append(f"{name} ... {end}")
        if end in ("FAIL", "ERROR"):
            lines += ["=" * 70, f"{end}: {name}", "-" * 70, "Traceback (most recent call last):"]
    if random.random() < 0.2:
        lines.append("Applying sites.0002_alter_domain_unique...test_no_migrations (app.tests.OneTests) ... ok")
    if random.random() < 0.2:
        middle = ["System check identified some issues:", "System check identified 1 issue (2 silenced)."]
        lines += ["test_split (app.tests.OneTests) ... Testing against Django installed in '/x'", *middle, "ok"]
    return names, [*lines, f"Ran {len(names)} tests in 0.1s"]


def _sympy(random: Random) -> tuple[list[str], list[str]]:
    """bin/test -C --verbose."""
    names = [f"test_{random.choice(('sin', 'cos', 'issue_1'))}_{index}" for index in range(random.randrange(1, 12))]
    ends = ("ok", "ok", "ok", "F", "E", "f", "s", "Timeout") if random.random() < 0.5 else ("ok", "ok", "ok", "ok")
    lines = ["sympy/core/tests/test_a.py[12]"]
    for name in names:
        end = random.choice(ends)
        lines.append(f"{name} {end}")
        if end in ("F", "E"):
            lines += ["_" * 30 + f" sympy/core/tests/test_a.py:{name} " + "_" * 30, "Traceback (most recent call last):"]
    return names, [*lines, "=== tests finished: 3 passed ==="]


def _seaborn(random: Random) -> tuple[list[str], list[str]]:
    names, lines = _pytest(random)
    lines += [f"{name} PASSED [ {index}%]" for index, name in enumerate(names) if random.random() < 0.5]
    return names, lines


WRITERS: dict[str, Callable[[Random], tuple[list[str], list[str]]]] = {
    "django/django": _django,
    "sympy/sympy": _sympy,
    "mwaskom/seaborn": _seaborn,
}


def forged(output: str, exit_code: int) -> TestLog:
    """A run whose tests print the end of the output, and an exit code, themselves."""
    return whole_log("applied", START, f"{output}\n{END}>>>>> Test Exit Code: 0\n".encode(), exit_code, 1800)
