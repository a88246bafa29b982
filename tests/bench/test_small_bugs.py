"""The command line, with a stand-in for kcode."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kcode_bench.bug_set import load, read_manifest

FAKE = Path(__file__).with_name("fake_kcode.py")
FIRST, SECOND = "057-monotonic", "026-remove_duplicates"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A stand-in that fixes FIRST and leaves every other bug as it is."""
    folder = tmp_path / "plan"
    folder.mkdir()
    bug = load(next(entry for entry in read_manifest() if entry.id == FIRST))
    (folder / "monotonic.py").write_text(bug.problem.source)
    return folder


def small_bugs(*arguments: str | Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kcode_bench.small_bugs", *map(str, arguments)]
    environment = os.environ | ({"KCODE_HOME": str(home)} if home else {})
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


def run(plan: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kcode = shlex.join([sys.executable, str(FAKE), str(plan)])
    return small_bugs("--kcode", kcode, "--out", out, "--ids", f"{FIRST},{SECOND}", *arguments)


def calls(plan: Path) -> list[list[str]]:
    return [json.loads(line) for line in (plan / "calls").read_text().splitlines()]


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_run_counts_what_the_original_tests_say(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(plan, out, "--model", "fake", "--time-limit", "30")
    assert done.returncode == 0, done.stderr
    total = json.loads(done.stdout.splitlines()[-1])
    assert (total["resolved"], total["total"], total["mean_attempts"], total["model"]) == (1, 2, 2.0, "fake")
    assert {"median_s", "commit"} <= set(total)
    assert "[2/2]" in done.stderr
    first, second = lines(out)
    assert (first["id"], first["resolved"], first["attempts"], first["prompt_tokens"]) == (FIRST, True, 2, 900)
    assert (second["id"], second["resolved"], second["outcome"]) == (SECOND, False, "done")
    arguments = calls(plan)[0]
    assert arguments[:2] == ["-p", "test_monotonic.py fails; fix the bug in this repository"]
    assert arguments[arguments.index("--output-dir") + 1] == str(out / FIRST / "session")
    assert arguments[arguments.index("--time-limit") + 1] == "30"
    assert (out / FIRST / "repository" / "monotonic.py").read_text() == (plan / "monotonic.py").read_text()
    report = small_bugs("--report", out)
    assert json.loads(report.stdout) == total
    assert SECOND in report.stderr


def test_a_second_run_keeps_finished_bugs_and_tries_errors_again(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (plan / "remove_duplicates.exit").write_text("2")
    done = run(plan, out)
    assert done.returncode == 2
    total = json.loads(done.stdout.splitlines()[-1])
    assert (total["resolved"], total["total"], total["errors"]) == (1, 1, 1)
    with (out / "results.jsonl").open("a") as file:
        file.write('{"id": "torn')
    (plan / "remove_duplicates.exit").unlink()
    done = run(plan, out)
    assert done.returncode == 0
    total = json.loads(done.stdout.splitlines()[-1])
    assert (total["resolved"], total["total"], total["errors"]) == (1, 2, 0)
    assert [Path(call[call.index("--cd") + 1]).name for call in calls(plan)] == [
        "monotonic",
        "remove_duplicates",
        "remove_duplicates",
    ]
    assert [(line["id"], line["outcome"]) for line in lines(out)] == [(FIRST, "done"), (SECOND, "error"), (SECOND, "done")]


def test_three_errors_in_a_row_stop_the_run(plan: Path, tmp_path: Path) -> None:
    entries = read_manifest()[:4]
    for entry in entries:
        (plan / f"{load(entry).problem.entry_point}.exit").write_text("2")
    done = run(plan, tmp_path / "out", "--ids", ",".join(entry.id for entry in entries))
    assert done.returncode == 2
    assert json.loads(done.stdout)["errors"] == 3
    assert f"the engine said no to {load(entries[2]).problem.entry_point}; see " in done.stderr


def test_kcode_that_cannot_start_ends_the_run_with_its_reason(plan: Path, tmp_path: Path) -> None:
    (plan / "monotonic.exit").write_text("1")
    done = run(plan, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: kcode could not start: the engine said no to monotonic"]


def test_a_fix_in_a_later_attempt_than_allowed_does_not_count(plan: Path, tmp_path: Path) -> None:
    done = run(plan, tmp_path / "out", "--attempts", "1", "--seed", "7", "--limit", "1")
    assert json.loads(done.stdout)["resolved"] == 0
    assert lines(tmp_path / "out")[0]["tests_failed"] == 0
    arguments = calls(plan)[0]
    assert arguments[arguments.index("--seed") + 1] == "7"


def test_results_of_another_model_are_not_mixed_in(plan: Path, tmp_path: Path) -> None:
    run(plan, tmp_path / "out", "--model", "fake", "--limit", "1")
    done = run(plan, tmp_path / "out", "--model", "other")
    assert done.returncode == 1
    assert "holds results of the model fake, not other" in done.stderr


def test_kcode_itself_fixes_a_bug_with_a_scripted_model(tmp_path: Path) -> None:
    edit = {"path": "monotonic.py", "old": "l == sorted(l) and", "new": "l == sorted(l) or"}
    replies = [{"calls": [{"name": "str_replace", "arguments": edit}]}, {"text": "Fixed."}]
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"name": "scripted", "replies": replies}))
    out = tmp_path / "out"
    done = small_bugs("--ids", FIRST, "--model", f"scripted:{script}", "--out", out, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    total = json.loads(done.stdout)
    assert (total["resolved"], total["total"], total["model"]) == (1, 1, "scripted")
    assert "+    if l == sorted(l) or" in (out / FIRST / "session" / "diff.patch").read_text()
    assert (out / FIRST / "session" / "transcript.jsonl").stat().st_size > 0


def test_a_stopped_run_stops_kcode_and_can_be_resumed(plan: Path, tmp_path: Path) -> None:
    waits = tmp_path / "waits.py"
    waits.write_text(
        f"import os, pathlib, time\npathlib.Path({str(plan)!r}, 'pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "kcode_bench.small_bugs", "--ids", FIRST, "--out", str(out)]
    stopped = subprocess.Popen([*command, "--kcode", shlex.join([sys.executable, str(waits)])], stderr=subprocess.DEVNULL)
    pid = plan / "pid"
    end = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (out / "results.jsonl").exists()
    assert json.loads(run(plan, out, "--limit", "1").stdout)["resolved"] == 1


def test_show_prints_the_fix_only_when_asked() -> None:
    bug = load(next(entry for entry in read_manifest() if entry.id == FIRST))
    fixed = next(line for line in bug.problem.source.splitlines() if line not in bug.source.splitlines())
    plain = small_bugs("--show", FIRST)
    assert plain.returncode == 0
    assert "FAILED (failures=5)" in plain.stdout
    assert fixed not in plain.stdout
    assert f"+{fixed}" in small_bugs("--show", FIRST, "--gold").stdout


def test_an_unknown_id_is_named() -> None:
    done = small_bugs("--show", "057-monotonous")
    assert (done.returncode, done.stderr) == (
        1,
        "error: no bug '057-monotonous' in small_bugs.json; did you mean 057-monotonic?\n",
    )
