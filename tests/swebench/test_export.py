"""What a run leaves for others: predictions, the official report, trajectories."""

from __future__ import annotations

import json

import pytest

from tests.swebench.conftest import INSTANCE, Bench, document
from tests.swebench.test_comparison import write
from tests.swebench.test_swebench import FINISH, FIX

ATIF_KEYS = {"schema_version", "session_id", "agent", "steps", "final_metrics"}


def test_a_run_is_exported_as_others_read_it(bench: Bench) -> None:
    done = bench.start("run", "--out", "out", "-m", bench.script({"calls": [FIX]}, FINISH), "--no-check-gold")
    assert done.returncode == 0, done.stderr
    found = document(bench.start("export", "out", "given/away", "--run-id", "mine", "--json"))
    to = bench.folder / "given" / "away"
    assert found == {
        "command": "export",
        "to": str(to),
        "predictions": 1,
        "report": str(to / "kcode.mine.json"),
        "trajectories": 1,
        "without_session": [],
    }
    out = bench.folder / "out"
    for name in ("preds.json", "preds.jsonl"):
        assert (to / name).read_bytes() == (out / name).read_bytes()
    assert json.loads((to / "kcode.mine.json").read_text()) == json.loads((out / "kcode.run.json").read_text())
    trajectory = json.loads((to / INSTANCE / "traj.json").read_text())
    assert trajectory == json.loads((out / INSTANCE / "traj.json").read_text()), "the run has it as well"
    assert (trajectory["schema_version"], set(trajectory)) == ("ATIF-v1.8", ATIF_KEYS)
    assert [step["step_id"] for step in trajectory["steps"]] == list(range(1, len(trajectory["steps"]) + 1))
    called = [call["function_name"] for step in trajectory["steps"] for call in step.get("tool_calls", ())]
    assert called == ["str_replace", "finish"]
    assert sorted(path.name for path in to.iterdir()) == sorted(["preds.json", "preds.jsonl", "kcode.mine.json", INSTANCE])


def test_an_instance_without_a_session_is_named(bench: Bench) -> None:
    write(bench.folder / "a", {"one": "e", "two": "i"})
    done = bench.start("export", "a", "b", "--json")
    assert document(done)["without_session"] == ["one", "two"]
    assert "one: there is no session to export" in done.stderr
    official = json.loads((bench.folder / "b" / "unknown.run.json").read_text())
    assert (official["total_instances"], official["incomplete_ids"]) == (1, ["one"]), "what cannot be graded is not counted"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gone", "b"), "gone: there is no such folder"),
        (("a", "a/below"), "lies in the results"),
        (("a", "file"), "not a folder"),
        (("a", "b", "--attempt", "2"), "--attempt 2: a has 1"),
        (("a", "b", "--run-id", "x/y"), "--run-id 'x/y'"),
    ],
)
def test_what_cannot_be_exported_is_refused(bench: Bench, arguments: tuple[str, ...], said: str) -> None:
    write(bench.folder / "a", {"one": "+"})
    (bench.folder / "file").write_text("")
    done = bench.start("export", *arguments)
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert not (bench.folder / "a" / "preds.json").exists()
