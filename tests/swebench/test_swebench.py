"""`kcode swebench` from the command line: environments, the agent, the verdict, and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.swebench.conftest import F2P, FUTURE, HINT, INSTANCE, P2P, Bench, document

FIX = {"name": "str_replace", "arguments": {"path": "calc.py", "old": "a - b", "new": "a + b"}}
FINISH: dict[str, object] = {"calls": [{"name": "finish", "arguments": {"summary": "done"}}]}


def fixing(bench: Bench) -> str:
    """A script that repairs the project, after looking; it also spoils the tests and leaves commits, which must not count."""
    spoil = "echo 'raise SystemExit' > test_calc.py; git add -A; git -c user.name=x -c user.email=x@y commit -qm mine"
    return bench.script(
        {"calls": [{"name": "read", "arguments": {"path": "calc.py"}}]},
        {"calls": [FIX]},
        {"calls": [{"name": "bash", "arguments": {"command": spoil}}]},
        FINISH,
    )


@pytest.mark.slow
def test_gold_fails_before_and_passes_after(bench: Bench) -> None:
    done = bench.start("check-gold")
    found = document(done)
    assert done.returncode == 0, done.stderr
    assert (found["command"], found["total"], found["valid"], found["environment_invalid"], found["error"]) == (
        *("check-gold", 1, 1, 0),
        0,
    )


@pytest.mark.slow
def test_what_cannot_be_graded_is_named_and_never_counted(bench: Bench) -> None:
    row = bench.project.row
    already = row | {"instance_id": "acme__calc-2", "FAIL_TO_PASS": [P2P]}
    unfixed = row | {"instance_id": "acme__calc-3", "PASS_TO_PASS": ["test_other (test_calc.CalcTest.test_other)"]}
    lost = row | {"instance_id": "acme__calc-4", "base_commit": "0" * 40}
    bench.dataset(already, unfixed, lost, {"instance_id": "broken"})
    done = bench.start("check-gold", "--workers", "2")
    found = document(done)
    assert done.returncode == 3
    assert (found["valid"], found["environment_invalid"], found["error"]) == (0, 2, 1)
    assert "row 4 (broken): repo: Field required; left out" in done.stderr
    assert f"passes without the fix: {P2P}" in done.stderr
    assert "fails with the gold patch: test_other" in done.stderr
    assert f"commit {'0' * 40} cannot be had" in done.stderr


def test_a_fix_is_resolved_and_a_finished_instance_is_not_repeated(bench: Bench) -> None:
    arguments = ("--out", "out", "-m", fixing(bench))
    done = bench.start("run", *arguments)
    found = document(done)
    assert done.returncode == 0, done.stderr
    assert (found["total"], found["locally_valid"], found["resolved"], found["errors"]) == (1, 1, 1, 0), done.stderr
    folder = bench.folder / "out" / INSTANCE
    patch = (folder / "patch.diff").read_text()
    assert "+    return a + b" in patch
    assert "test_calc.py" not in patch
    assert "left_by_installation" not in patch
    prediction = json.loads((bench.folder / "out" / "preds.json").read_text())[INSTANCE]
    assert prediction == {"instance_id": INSTANCE, "model_name_or_path": "kcode", "model_patch": patch}
    report = json.loads((folder / "report.json").read_text())[INSTANCE]
    assert report["resolved"]
    assert report["tests_status"]["FAIL_TO_PASS"] == {"success": [F2P], "failure": []}
    official = json.loads((bench.folder / "out" / "kcode.run.json").read_text())
    assert (official["resolved_ids"], official["schema_version"]) == ([INSTANCE], 2)
    assert (folder / "session" / "transcript.jsonl").exists()
    again = bench.start("run", *arguments)
    assert "1 of 1 were finished before" in again.stderr
    assert document(again) == found
    told = document(bench.start("report", "out", "--json"))
    assert (told["command"], told["resolved"]) == ("report", 1)


@pytest.mark.slow
def test_no_fix_is_unresolved_and_an_error_is_tried_again(bench: Bench) -> None:
    failing = bench.script({"error": "the model is gone"})
    done = bench.start("run", "--out", "out", "-m", failing, "--no-check-gold")
    assert (done.returncode, document(done)["errors"]) == (2, 1)
    Path(failing.removeprefix("scripted:")).write_text(json.dumps({"replies": [FINISH]}))
    done = bench.start("run", "--out", "out", "-m", failing, "--no-check-gold")
    found = document(done)
    assert (done.returncode, found["errors"], found["unresolved"], found["empty_patch"]) == (0, 0, 1, 1), done.stderr


@pytest.mark.slow
def test_predictions_of_others_are_graded(bench: Bench) -> None:
    row = bench.project.row
    second = row | {"instance_id": "acme__calc-2"}
    third = row | {"instance_id": "acme__calc-3"}
    fourth = row | {"instance_id": "acme__calc-4"}
    bench.dataset(row, second, third, fourth)
    wrong = str(row["patch"]).replace("a + b", "a * b")
    predictions = {
        INSTANCE: {"model_patch": row["patch"], "model_name_or_path": "other"},
        "acme__calc-2": {"model_patch": wrong, "model_name_or_path": "other"},
        "acme__calc-3": {"model_patch": None, "model_name_or_path": "other"},
        "acme__calc-4": {"model_patch": wrong.replace("a - b", "a / b"), "model_name_or_path": "other"},
    }
    (bench.folder / "preds.json").write_text(json.dumps(predictions))
    done = bench.start("eval", "--predictions", "preds.json", "--out", "out", "--workers", "2", "--no-check-gold")
    assert document(done)["resolved"] == 1, done.stderr
    official = json.loads((bench.folder / "out" / "other.eval.json").read_text())
    assert official["resolved_ids"] == [INSTANCE]
    assert official["unresolved_ids"] == ["acme__calc-2"]
    assert official["empty_patch_ids"] == ["acme__calc-3"]
    assert official["error_ids"] == ["acme__calc-4"], "a patch that does not apply has no report in the official harness"


SEARCH = f"""\
git log --all --format=%s; git tag; git reflog; git remote -v; git branch -a
git cat-file --batch-all-objects --batch-check='%(objectname)' | while read object; do git cat-file -p $object; done |
  grep -a {FUTURE[:6]}
grep -rl {FUTURE} "$PWD/.." /tmp /home /root 2>/dev/null
grep -rl {HINT} "$PWD/.." /tmp /home /root 2>/dev/null
grep -rl test_add "$PWD/.." /tmp /home /root 2>/dev/null
cat .git/objects/info/alternates .git/packed-refs .git/FETCH_HEAD 2>/dev/null
ls SOURCES ROWS
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/ns/user").exists(), reason="no user namespaces, hence no sandbox")
def test_agent_in_the_sandbox_finds_one_commit_and_no_answer(bench: Bench) -> None:
    """It looks everywhere for the future, the hints, the tests and the gold patch."""
    search = SEARCH.replace("SOURCES", str(bench.project.source)).replace("ROWS", str(bench.dataset()))
    looking = {"calls": [{"name": "bash", "arguments": {"command": search}}]}
    done = bench.start("run", "--out", "out", "-m", bench.script(looking, {"calls": [FIX]}, FINISH), kind="bwrap")
    assert document(done)["resolved"] == 1, done.stderr
    lines = (bench.folder / "out" / INSTANCE / "session" / "transcript.jsonl").read_text().splitlines()
    seen = "\n".join(line for line in lines if "grep -rl" not in line)
    assert "base" in seen
    assert "No such file" in seen
    for secret in (FUTURE[:6], HINT, "test_add", "v9", "past\\n"):
        assert secret not in seen, secret
