"""Checkouts as they come: shallow, detached, linked, in odd places, with files of every kind; and runs that are stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.ci.conftest import CALC, FIX, PYTEST, TESTS, Inside, Place, bash, git

pytestmark = pytest.mark.slow


def fetched(place: Place, source: str = "fix.bundle") -> None:
    """The fix, fetched and laid out in the checkout."""
    git(place.checkout, "fetch", "-q", str(place.folder / "out" / source), "+refs/heads/*:refs/heads/fetched/*")
    (branch,) = git(place.checkout, "for-each-ref", "--format=%(refname)", "refs/heads/fetched/").splitlines()
    git(place.checkout, "checkout", "-q", branch)


def test_a_shallow_and_detached_checkout(place: Place) -> None:
    place.commit({"more.txt": "1"})
    shallow = place.folder / "shallow clone #1 %20"
    git(place.folder, "clone", "-q", "--depth=1", place.checkout.as_uri(), str(shallow))
    git(shallow, "checkout", "-q", "--detach")
    found = replace(place, checkout=shallow)
    ended = found.run(bash(FIX, "git log --oneline | wc -l"))
    assert (ended.code, ended.summary["base_branch"]) == (0, ""), ended.stderr
    fetched(found)
    assert (shallow / "calc.py").read_text() == CALC.replace("a - b", "a + b")


def test_a_linked_worktree_and_a_folder_below(place: Place) -> None:
    place.commit({"pkg/calc.py": CALC, "pkg/test_calc.py": TESTS, "pytest.ini": "[pytest]\nfilterwarnings = error\n"})
    linked = place.folder / "linked"
    git(place.checkout, "worktree", "add", "-q", "-b", "side", str(linked))
    ended = replace(place, checkout=linked / "pkg").run(bash(FIX, "git status --short", "echo x > ../new"), test=PYTEST)
    assert (ended.code, ended.summary["files"], ended.summary["base_branch"]) == (0, ["pkg/calc.py"], "side"), ended.stderr
    assert (linked / "pkg" / "calc.py").read_text() == CALC
    broken = replace(place, checkout=linked / "pkg").run(bash("true"), "--annotations=github")
    assert broken.code == 5
    assert "::error file=pkg/test_calc.py,line=" in broken.stdout


def test_an_editable_installation_is_found_since_the_copy_has_the_checkouts_path(place: Place) -> None:
    place.commit({"src/calc.py": CALC, "tests/test_calc.py": TESTS, ".gitignore": ".venv/\n"})
    for name in ("calc.py", "test_calc.py"):
        (place.checkout / name).unlink()
    place.commit_all()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=place.checkout, check=True)
    (packages,) = (place.checkout / ".venv" / "lib").glob("python3*/site-packages")
    (packages / "editable.pth").write_text(f"{place.checkout / 'src'}\n")
    ended = place.run(bash(FIX.replace("calc.py", "src/calc.py")), test=".venv/bin/python -m unittest discover -s tests")
    assert ended.code == 0, ended.stderr
    assert "read-only from the checkout: .venv" in ended.stderr


def test_files_of_every_kind_come_out_as_they_were_left(place: Place) -> None:
    place.commit(
        {".gitattributes": "*.txt text eol=crlf\n*.x filter=none\n", "lines.txt": "a\nb\n", "gone.md": "x", "old.bin": "x"}
    )
    (place.checkout / "latin.md").write_bytes("é\n".encode("latin-1") * 3)
    (place.checkout / "run").write_text("#!/bin/sh\n")
    place.commit_all()
    commands = (
        FIX,
        "printf 'c\\n' >> lines.txt; printf '\\351\\n' >> latin.md; chmod +x run; rm gone.md",
        "head -c 3000 /dev/urandom > old.bin",
        "mkdir -p new/deep; printf 'no newline' > new/deep/$'odd\\n\"name\\\\'; touch new/empty; cp old.bin new/copy",
        "mkfifo pipe; mkdir -m 000 closed; echo x > ignored.pyc; ln -s calc.py broken-link && rm broken-link",
    )
    ended = place.run(bash(*commands), test="python3 -m unittest test_calc")
    assert ended.code == 0, ended.stderr
    fetched(place)
    assert (place.checkout / "latin.md").read_bytes() == "é\n".encode("latin-1") * 4
    assert (place.checkout / "new" / "deep" / 'odd\n"name\\').read_text() == "no newline"
    assert (place.checkout / "new" / "copy").read_bytes() == (place.checkout / "old.bin").read_bytes()
    assert os.access(place.checkout / "run", os.X_OK)
    assert not (place.checkout / "gone.md").exists()
    assert "pipe is left out: it is neither a file nor a link" in ended.stderr
    assert git(place.checkout, "show", "HEAD:lines.txt") == "a\nb\nc"


def test_a_test_command_that_hangs_is_ended(place: Place) -> None:
    place.commit({"calc.py": CALC + "\nwhile True:\n    pass\n"})
    ended = place.run(bash("true"), "--test-timeout=2")
    assert ended.code == 5
    assert '"exit_code": null' in ended.stdout


def test_the_setup_runs_in_every_copy(place: Place) -> None:
    setup = "--setup=mkdir built && touch built/module && echo built >> version"
    place.commit({"version": "1\n", "fail": "echo '##[error]'; false"})
    ended = place.run(bash("test -e built/module && " + FIX), setup, test="ls built/module && python3 -m unittest && date > ran")
    assert ended.code == 0, ended.stderr
    assert ended.summary["files"] == ["calc.py"], "what set-up and tests leave is no part of the fix"
    failed = place.run(bash(FIX), "--setup=sh fail")
    assert (failed.code, "ended with 1" in failed.stderr, "##[" in failed.stderr) == (1, True, False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_4_and_leaves_nothing(place: Place, number: signal.Signals) -> None:
    scratch = place.folder / "scratch"
    scratch.mkdir()
    started = place.checkout / "started"
    command = [sys.executable, "-m", "kcode", "ci", f"--test=touch {started}; sleep 300", "--model=scripted:x"]
    process = subprocess.Popen(
        command, cwd=place.checkout, env=place.environment(TMPDIR=str(scratch)), stderr=subprocess.PIPE, text=True
    )
    clones = place.folder / "home" / "state" / "clones"
    until = time.monotonic() + 120
    while not list(clones.glob("*/*/tree/started")):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, "stopped by a signal" in stderr) == (4, True), stderr
    assert not started.exists()
    assert [path for path in scratch.iterdir() if path.name.startswith("kcode-ci-")] == []
    # What is called trash is dropped already, and deleted by whoever comes next.
    assert [path for path in clones.glob("*/*") if path.is_dir() and not path.name.startswith("trash-")] == []


def test_what_is_no_repository_with_a_commit_is_said(place: Place, inside: Inside) -> None:
    shutil.rmtree(place.checkout / ".git")
    assert "works on a commit of a git repository" in inside(place)[2]
    git(place.checkout, "init", "-q")
    assert "works on a commit of a git repository" in inside(place)[2]
    assert inside(place)[0] == 1


def test_a_command_that_does_not_exist_cannot_start(place: Place, inside: Inside) -> None:
    code, _, stderr = inside(place, "--test=no-such-program --all")
    assert (code, "it cannot be run inside the sandbox (exit code 127)" in stderr) == (1, True)
