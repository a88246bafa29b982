from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from kcode.errors import StartError
from kcode_bench.bug_set import Entry, load, read_manifest, run_project, split_of, write_project, write_repository
from kcode_bench.bug_tests import test_count as count_of
from kcode_bench.mutations import Mutation, mutations
from kcode_bench.problems import problems

ENTRIES = read_manifest()
SAMPLE = ENTRIES[:: len(ENTRIES) // 6][:6]


def by_id(task_id: str) -> Entry:
    return next(entry for entry in ENTRIES if entry.id == task_id)


def test_the_list_has_enough_bugs_of_many_kinds_in_both_halves() -> None:
    assert len({entry.id for entry in ENTRIES}) == len(ENTRIES) >= 80
    for split in ("tune", "held"):
        half = [entry for entry in ENTRIES if entry.split == split]
        assert len(half) >= 40
        assert len({entry.kind for entry in half}) >= 15
        kinds = [entry.kind for entry in half]
        assert max(kinds.count(kind) for kind in kinds) <= len(half) // 8
    assert [entry.split for entry in ENTRIES] == [split_of(entry.id) for entry in ENTRIES]


def test_every_bug_is_made_again_exactly() -> None:
    bugs = [load(entry) for entry in ENTRIES]
    assert all(bug.source != bug.problem.source for bug in bugs)
    for bug in bugs:
        assert ast.get_docstring(ast.parse(bug.source)) == ast.get_docstring(ast.parse(bug.problem.source))


def test_a_bug_that_the_installed_problems_do_not_give_is_refused() -> None:
    entry = by_id("057-monotonic")
    with pytest.raises(StartError, match="057-monotonic"):
        load(Entry(entry.id, entry.kind, entry.split, "0" * 16, entry.failed, entry.passed))


@pytest.mark.parametrize("entry", SAMPLE, ids=lambda entry: entry.id)
def test_the_reference_passes_and_the_bug_fails_as_the_list_says(entry: Entry) -> None:
    bug = load(entry)
    assert run_project(bug.problem, bug.problem.source, 10).ok
    run = run_project(bug.problem, bug.source, 10)
    assert (run.failed, run.passed, run.timed_out) == (entry.failed, entry.passed, False)
    assert run.failed > 0


@pytest.mark.slow
def test_every_listed_bug_fails_and_its_reference_passes() -> None:
    for entry in ENTRIES:
        bug = load(entry)
        assert run_project(bug.problem, bug.problem.source, 20).ok, entry.id
        run = run_project(bug.problem, bug.source, 20)
        assert (run.failed, run.passed) == (entry.failed, entry.passed), entry.id


def test_a_mutation_changes_one_span_and_keeps_the_rest() -> None:
    source = (
        "import math\n\n\ndef area(values):\n"
        '    """Sum above zero - "é" stays."""\n'
        "    # a comment, kept\n"
        "    total = 0   # odd spacing\n"
        "    for value in values:\n"
        "        if value > 0:\n"
        "            total += value\n"
        "    return total\n"
    )
    found = mutations(source, "area")
    assert Mutation("boundary", source.index("> 0"), source.index("> 0") + 1, ">=") in found
    assert {"boundary", "comparison", "arithmetic", "initial_value", "constant", "early_return", "wrong_variable"} <= {
        mutation.kind for mutation in found
    }
    for mutation in found:
        text = mutation.apply(source)
        assert '"""Sum above zero - "é" stays."""\n    # a comment, kept\n' in text
        assert text.count("   # odd spacing") == 1
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(source))
    assert found == mutations(source, "area")
    assert len({mutation.apply(source) for mutation in found}) == len(found)


def test_a_return_slips_into_the_loop_before_it() -> None:
    source = "def total(values):\n    result = 0\n    for value in values:\n        result += value\n\n    return result\n"
    moved = next(mutation for mutation in mutations(source, "total") if mutation.kind == "early_return")
    assert moved.apply(source) == source.replace("    return result", "        return result")


def test_the_repository_does_not_hold_the_fix(tmp_path: Path) -> None:
    for entry in SAMPLE:
        bug = load(entry)
        repository = tmp_path / entry.id / bug.problem.entry_point
        write_repository(repository, bug)
        objects = subprocess.run(
            ["git", "cat-file", "--batch-all-objects", "--batch"], cwd=repository, capture_output=True, check=True
        ).stdout.decode(errors="replace")
        files = "\n".join(path.read_text() for path in repository.iterdir() if path.is_file())
        commits = subprocess.run(
            ["git", "log", "--oneline", "--all"], cwd=repository, capture_output=True, text=True, check=True
        ).stdout
        assert bug.source in objects
        for text in (objects, files, commits):
            assert bug.problem.source not in text
        fixed_lines = set(bug.problem.source.splitlines()) - set(bug.source.splitlines())
        assert not fixed_lines & set(objects.splitlines())
        assert len(commits.splitlines()) == 1
        assert subprocess.run(["git", "status", "--short"], cwd=repository, capture_output=True, check=True).stdout == b""


def test_pytest_and_unittest_agree_on_a_generated_test_file(tmp_path: Path) -> None:
    bug = load(by_id("057-monotonic"))
    project = tmp_path / "monotonic"
    write_project(project, bug.problem, bug.source)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=project, capture_output=True, text=True, check=False
    )
    assert f"{bug.entry.failed} failed, {bug.entry.passed} passed" in done.stdout


def test_random_checks_are_left_out() -> None:
    add = next(problem for problem in problems() if problem.task_id == "053-add")
    assert "random" in add.check
    assert count_of(add) == 5
