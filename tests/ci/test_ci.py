"""`kcode ci` from a failing command, an issue or an event to a verified fix, or to none."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from kcode.ci.task import Task, parse_event
from kcode.errors import StartError
from tests.ci.conftest import FIX, PYTEST, Inside, Place, bash, git


def state(checkout: Path) -> tuple[str, str, str]:
    """What a user sees of a checkout: branches, status and files."""
    shown = git(checkout, "for-each-ref"), git(checkout, "status", "--porcelain")
    files = sorted((str(path.relative_to(checkout)), path.read_bytes()) for path in checkout.rglob("*") if path.is_file())
    return *shown, str(files)


def test_a_fix_is_verified_and_the_checkout_stays_as_it_is(place: Place) -> None:
    (place.checkout / "notes.txt").write_text("not committed")
    before = state(place.checkout)
    ended = place.run(bash(FIX))
    summary = ended.summary

    assert ended.code == 0, ended.stderr
    assert (summary["status"], summary["files"], summary["judged_by"]) == ("fixed", ["calc.py"], "counts of tests")
    assert "1 paths have uncommitted changes, which are left out: notes.txt" in ended.stderr
    assert state(place.checkout) == before
    branch, commit = str(summary["branch"]), str(summary["commit"])
    git(place.checkout, "fetch", "-q", str(ended.output / "fix.bundle"), f"{branch}:{branch}")
    assert git(place.checkout, "rev-parse", branch) == commit
    git(place.checkout, "am", "-q", str(ended.output / "fix.patch"))
    assert "a + b" in (place.checkout / "calc.py").read_text()
    assert git(place.checkout, "log", "-1", "--format=%s") == summary["title"]


@pytest.mark.slow
def test_pytest_is_judged_test_by_test_however_it_is_called(place: Place) -> None:
    place.commit({"Makefile": f"test:\n\t{PYTEST}\n"})
    event = place.folder / "event.json"
    event.write_text(json.dumps({"check_run": {"name": "tests", "conclusion": "failure"}}))
    ended = place.run(bash(FIX), f"--event={event}", test="make test")
    assert (ended.code, ended.summary["judged_by"], ended.summary["title"]) == (0, "each test", "Make make test pass")


@pytest.mark.slow
def test_what_repairs_nothing_is_no_fix(place: Place) -> None:
    ended = place.run(bash("echo '# better' >> calc.py"))
    assert (ended.code, ended.summary["status"], ended.summary["commit"]) == (5, "no_fix", None)
    assert ended.faults[0].startswith("the test command still fails (exit code 1: 1 passed, 1 failed")
    assert ended.summary["annotations"]
    assert not (ended.output / "fix.patch").exists()


def test_a_command_that_succeeds_anyway_shows_nothing(place: Place, inside: Inside) -> None:
    code, stdout, stderr = inside(place, "--json")
    assert (code, json.loads(stdout)["status"]) == (5, "nothing_to_fix"), stderr


@pytest.mark.slow
def test_later_attempts_are_made_and_each_begins_from_the_commit(place: Place) -> None:
    replies = [*bash("echo broken > calc.py"), *bash(FIX)]
    ended = place.run(replies, "--attempts=3")
    assert ended.code == 0, ended.stderr
    assert len(ended.faults) == 2
    assert ended.faults[1] == ""


@pytest.mark.slow
def test_tests_that_fail_only_sometimes_show_nothing(place: Place) -> None:
    place.commit({".gitignore": "node_modules/\n"})
    flag = place.checkout / "node_modules" / "flag"
    flag.parent.mkdir()
    done = threading.Event()

    def mend() -> None:
        """The weather changes once the agent is at work."""
        while not done.wait(0.05):
            if (place.folder / "out" / "transcript-1.jsonl").exists():
                flag.touch()

    thread = threading.Thread(target=mend)
    thread.start()
    try:
        wait = "until test -e node_modules/flag; do sleep 0.1; done; echo '# repaired' >> calc.py"
        ended = place.run(bash(wait), test="test -e node_modules/flag")
    finally:
        done.set()
        thread.join()
    assert ended.code == 5, ended.stderr
    assert ended.faults == ["the tests fail only sometimes: at the second run they passed without the change"]


@pytest.mark.slow
def test_an_issue_needs_a_new_test_that_fails_without_the_change(place: Place) -> None:
    place.commit({"test_calc.py": "import unittest\n\n\nclass T(unittest.TestCase):\n    def test_none(self):\n        pass\n"})
    new = "\n    def test_add(self):\n        import calc\n        self.assertEqual(calc.add(1, 2), 3)\n"
    useless = "\n    def test_nothing(self):\n        self.assertTrue(True)\n"
    issue = place.folder / "issue.md"
    issue.write_text("# add subtracts\n\nadd(1, 2) gives -1.\n")

    def write(text: str) -> str:
        return f"python3 - <<'E'\nopen('test_calc.py', 'a').write({text!r})\nE"

    asked = f"--issue={issue}"
    assert place.run(bash(FIX), asked).faults[0].endswith("no new test shows what was wrong")
    assert place.run(bash(FIX, write(useless)), asked).faults == ["the new tests pass without the change, too"]
    ended = place.run(bash(FIX, write(new)), asked)
    assert ended.code == 0, ended.stderr
    assert ended.summary["title"] == "Fix: add subtracts"
    assert "add(1, 2) gives -1." in (ended.output / "body.md").read_text()


@pytest.mark.slow
def test_dependencies_that_git_ignores_are_there_and_read_only(place: Place) -> None:
    place.commit({".gitignore": "node_modules/\nsecret/\n"})
    for name in ("node_modules", "secret"):
        (place.checkout / name).mkdir()
        (place.checkout / name / "dependency").write_text("here")
    test = "cat node_modules/dependency && python3 -m unittest"
    ended = place.run(bash("echo x > node_modules/dependency", "ls secret", FIX), test=test)
    assert ended.code == 0, ended.stderr
    assert (place.checkout / "node_modules" / "dependency").read_text() == "here"
    assert "ls: cannot access 'secret'" in (ended.output / "transcript-1.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--test= "], "--test is empty"),
        (["--branch=../main"], "--branch '../main'"),
        (["--author=x"], "--author 'x': give NAME <ADDRESS>"),
        (["--issue=none.md"], "--issue none.md: No such file"),
        (["--issue=-", "--log=-"], "only one of --issue, --log and --event"),
        (["--keep=/etc"], "--keep /etc: it must be a folder at the top of"),
        (["--keep=src"], "--keep src: it must be a folder at the top of"),
    ],
)
def test_what_cannot_start_says_why(place: Place, arguments: list[str], told: str, inside: Inside) -> None:
    code, stdout, stderr = inside(place, "--json", *arguments)
    assert (code, told in stderr) == (1, True), stderr
    assert all(json.loads(line)["status"] == "not_started" for line in stdout.splitlines())


def event(**document: object) -> Task:
    return parse_event(json.dumps(document).encode(), "event.json")


def test_events_of_both_forges_are_read() -> None:
    issue = {"title": "It\x1b[31m breaks\n", "body": None, "number": 7, "user": {"login": "x"}}
    assert event(action="opened", issue=issue) == Task("issue", "It breaks", "", number=7)
    said = event(issue=issue, comment={"body": "/kcode fix"})
    assert said.text == "Comment:\n/kcode fix"
    sha = "a" * 40
    pull = {"title": "T", "body": "B", "number": 3, "head": {"sha": sha}}
    assert event(pull_request=pull) == Task("pull request", "T", "B", number=3, sha=sha)
    assert event(workflow_run={"display_title": "CI", "conclusion": "failure", "head_sha": sha}).title == "CI: failure"
    assert event(object_kind="issue", object_attributes={"iid": 4, "title": "T", "description": "D"}).number == 4
    note = {"object_kind": "note", "object_attributes": {"note": "help"}, "issue": {"iid": 5, "title": "T"}}
    assert event(**note) == Task("issue", "T", "Comment:\nhelp", number=5)
    build = {"object_kind": "build", "build_name": "test", "build_status": "failed", "sha": sha}
    assert event(**build) == Task("check", "test: failed", sha=sha)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'"issue"',
        b"{}",
        b'{"issue": 3}',
        b'{"issue": {"number": -1}}',
        b'{"issue": {"number": "1; rm"}}',
        b'{"object_kind": "push"}',
        b"[" * 100_000,
        b'{"issue": {"title": {"a": 1}}}',
    ],
)
def test_an_event_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(StartError, match=r"--event event\.json"):
        parse_event(data, "event.json")


def test_a_sha_that_is_none_is_dropped() -> None:
    assert event(check_run={"name": "x", "head_sha": "$(touch /tmp/x)" + "a" * 26}).sha == ""
