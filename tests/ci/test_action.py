"""The GitHub action and the examples: what they say is what `kcode ci` takes, and the action's step works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import yaml

from kcode.ci.action import FLAGS, LISTS, VALUES, arguments, outputs
from kcode.commands.ci import command
from tests.ci.conftest import FIX, Place, bash

ROOT = Path(__file__).resolve().parents[2]
Document = dict[str, object]
OPTIONS = {option for parameter in command.params for option in parameter.opts}
# Inputs that are no option: of the step itself, and the token, which comes by a variable.
OWN_INPUTS = {"token", "fail-without-fix"}


def read(name: str) -> Document:
    return cast("Document", yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))


def below(document: object, *names: str | int) -> object:
    for name in names:
        document = cast("dict[str | int, object]", document)[name]
    return document


def test_every_input_is_an_option_and_reaches_it() -> None:
    action = read("action.yml")
    inputs = set(cast("Document", action["inputs"]))
    assert {f"--{name}" for name in inputs - OWN_INPUTS} <= OPTIONS
    assert inputs - OWN_INPUTS == {*VALUES, *LISTS, *FLAGS}
    steps = cast("list[Document]", below(action, "runs", "steps"))
    environment = cast("dict[str, str]", steps[-1]["env"])
    given = {name: value for name, value in environment.items() if name.startswith("CI_INPUT_")}
    assert given == {f"CI_INPUT_{name.upper().replace('-', '_')}": f"${{{{ inputs.{name} }}}}" for name in inputs - {"token"}}


@pytest.mark.parametrize("name", ["action.yml", "docs/ci/github.yml"])
def test_no_script_has_text_from_outside_in_it(name: str) -> None:
    document = read(name)
    places = [("runs", "steps")] if name == "action.yml" else [("jobs", "repair", "steps")]
    for place in places:
        for step in cast("list[Document]", below(document, *place)):
            assert "${{" not in str(step.get("run", "")), step


def test_the_examples_use_what_there_is() -> None:
    inputs = cast("dict[str, Document]", read("action.yml")["inputs"])
    steps = cast("list[Document]", below(read("docs/ci/github.yml"), "jobs", "repair", "steps"))
    (used,) = [cast("Document", step["with"]) for step in steps if "kcode@" in str(step.get("uses"))]
    assert set(used) <= set(inputs)
    assert {name for name, facts in inputs.items() if facts.get("required")} <= set(used)
    script = cast("list[str]", below(read("docs/ci/gitlab.yml"), "kcode", "script"))
    line = re.sub(r"\$\{TRIGGER_PAYLOAD:\+(.*?)\}", r"\1", script[-1])
    words = [word for word in shlex.split(line) if word.startswith("--")]
    assert len(words) > 5
    assert set(words) <= OPTIONS
    checkout = cast("Document", steps[0]["with"])
    assert checkout["persist-credentials"] is False


def test_inputs_become_options_as_they_are() -> None:
    hostile = "x; $(touch /tmp/x) `id` --push"
    given = {"CI_INPUT_TEST": hostile, "CI_INPUT_ALLOW": "a.py\n\n b/*.py ", "CI_INPUT_PUSH": "false", "CI_INPUT_OPEN_PR": "true"}
    assert arguments(given) == [f"--test={hostile}", "--allow=a.py", "--allow=b/*.py", "--open-pr"]


def test_an_output_cannot_name_another(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"status": "no_fix", "reason": "a\\nbranch=main\\r\\ncommit=x"}')
    lines = outputs(tmp_path / "summary.json", 5)
    assert lines[:2] == ["status=no_fix", "branch="]
    assert "reason=a branch=main commit=x" in lines
    assert all("\n" not in line for line in lines)
    assert outputs(tmp_path / "none" / "summary.json", 1)[0] == "status="


@pytest.mark.slow
def test_the_step_runs_and_imports_nothing_of_the_checkout(place: Place) -> None:
    place.run(bash(FIX))
    marker = place.folder / "imported"
    hostile = f"open({str(marker)!r}, 'w')"
    place.commit({"kcode/__init__.py": hostile, "click.py": hostile, "yaml.py": hostile, "kcode/ci/action.py": hostile})
    runner = {"RUNNER_TEMP": str(place.folder), "GITHUB_OUTPUT": str(place.folder / "outputs"), "GITHUB_ACTIONS": "true"}
    asked = {"CI_INPUT_TEST": "python3 -m unittest", "CI_INPUT_MODEL": f"scripted:{place.folder / 'script.json'}"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kcode.ci.action"],
        cwd=place.checkout,
        env=place.environment(**runner, **asked, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    told = dict(line.split("=", 1) for line in (place.folder / "outputs").read_text().splitlines())
    assert (told["status"], told["exit-code"]) == ("fixed", "0")
    assert told["branch"].startswith("kcode/fix-tests-")
    assert "::notice file=calc.py,line=2,endLine=2,title=kcode::" in done.stdout
