"""Our reading of logs against the official package's, for every Python repository of SWE-bench Verified.

Its answers are kept as digests; the package itself is asked where KCODE_TEST_SWEBENCH names a Python that has it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from kcode_bench.swe.grading import grade
from kcode_bench.swe.log_parsers import parser_named
from tests.swebench.logs import Case, cases, forged

OFFICIAL = "KCODE_TEST_SWEBENCH"
"""Environment variable: a Python interpreter that has the package swebench, version 5."""
ANSWERS = Path(__file__).with_name("official_answers.json")
ASK = """
import json, sys
from pathlib import Path
from swebench.harness.grading import get_eval_report
from swebench.harness.log_parsers import PARSER_REGISTRY
from swebench.types import TestSpec

folder, answers = Path(sys.argv[1]), {}
for row in json.loads((folder / "rows.json").read_text()):
    name = row["instance_id"]
    spec = TestSpec(name, "", [], row["repo"], "", row["FAIL_TO_PASS"], row["PASS_TO_PASS"], row["log_parser"], row["eval_type"])
    log = folder / f"{name}.txt"
    prediction = {"instance_id": name, "model_name_or_path": "m", "model_patch": "x"}
    report = get_eval_report(spec, prediction, log, include_tests_status=True)
    answers[name] = {"statuses": PARSER_REGISTRY[row["log_parser"]](open(log).read(), spec), "report": report}
print(json.dumps(answers))
"""


def ours(case: Case) -> dict[str, object]:
    verdict = grade(case.row, case.row.log_parser, case.log)
    statuses = parser_named(case.row.log_parser)(case.log.text)
    return {"statuses": statuses, "report": verdict.document(case.name, patch_exists=True)}


def digest(answer: object) -> str:
    return hashlib.sha256(json.dumps(answer, sort_keys=True).encode()).hexdigest()[:16]


def test_logs_are_read_as_the_official_package_read_them() -> None:
    recorded = json.loads(ANSWERS.read_text())
    found = {case.name: digest(ours(case)) for case in cases()}
    assert len(found) >= 200
    assert found == recorded["answers"], recorded["version"]


def test_the_logs_tell_all_kinds_of_verdict() -> None:
    verdicts = [grade(case.row, case.row.log_parser, case.log) for case in cases()]
    kinds = Counter("resolved" if each.resolved else "unresolved" if each.tests else "ungraded" for each in verdicts)
    assert min(kinds[kind] for kind in ("resolved", "unresolved", "ungraded")) >= 20, kinds


def test_an_end_that_the_tests_printed_themselves_is_not_believed() -> None:
    """The official harness stops reading there. What failed behind it counts here: this difference is meant."""
    case = next(case for case in cases() if case.row.repo == "pallets/flask")
    row = case.row.model_copy(update={"FAIL_TO_PASS": ("t.py::test_a",), "PASS_TO_PASS": ()})
    log = forged("PASSED t.py::test_a", 1)
    assert not grade(row, "pytest", log).resolved, "a run that failed without a failure"
    behind = replace(log, output=f"{log.output}FAILED t.py::test_a - assert 0\n")
    assert grade(row, "pytest", behind).tests is not None
    assert not grade(row, "pytest", behind).resolved


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.skipif(OFFICIAL not in os.environ, reason=f"{OFFICIAL} names no Python with the package swebench")
def test_the_official_package_says_the_same(tmp_path: Path) -> None:
    """With KCODE_RECORD=1 its answers are written to official_answers.json."""
    every = cases()
    (tmp_path / "rows.json").write_text(json.dumps([case.row.model_dump() for case in every]))
    for case in every:
        (tmp_path / f"{case.name}.txt").write_text(case.log.text, encoding="utf-8")
    version = "import importlib.metadata as m; print(m.version('swebench'))"
    asked = [
        subprocess.run(
            [os.environ[OFFICIAL], "-c", program, str(tmp_path)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stdout
        for program in (ASK, version)
    ]
    answers = json.loads(asked[0])
    if os.environ.get("KCODE_RECORD"):
        record = {
            "version": f"swebench {asked[1].strip()}",
            "answers": {name: digest(answer) for name, answer in answers.items()},
        }
        ANSWERS.write_text(json.dumps(record, indent=1) + "\n")
    different = {case.name: (ours(case), answers[case.name]) for case in every if ours(case) != answers[case.name]}
    assert not different, f"{len(different)} of {len(every)}; first: {next(iter(different.items()))}"
