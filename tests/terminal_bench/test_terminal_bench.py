"""`kcode terminal-bench` from the command line: what can be run, the agent, the tests, the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.terminal_bench.conftest import SECRET, Bench, document, first_task, harbor_task

pytestmark = pytest.mark.skipif(not Path("/proc/self/ns/user").exists(), reason="no user namespaces, hence no sandbox")

FINISH: dict[str, object] = {"calls": [{"name": "finish", "arguments": {"summary": "done"}}]}


def bash(command: str) -> dict[str, object]:
    return {"calls": [{"name": "bash", "arguments": {"command": command}}]}


@pytest.mark.slow
def test_solutions_of_both_layouts_pass_and_nothing_fails(bench: Bench) -> None:
    harbor_task(bench.tasks / "second")
    first_task(bench.tasks / "first")
    done = bench.start("check", str(bench.tasks), "--workers", "2")
    found = document(done)
    assert (done.returncode, found["valid"], found["total"]) == (0, 2, 2), done.stderr


DIFFICULT = """\
FROM python:3.13
RUN apt-get update && apt-get install -y no-such-package-x
RUN pip install numpy
COPY --from=other /a /b
WORKDIR /app
"""


def test_what_takes_a_container_is_named_with_its_line(bench: Bench) -> None:
    harbor_task(bench.tasks / "hard", **{"environment/Dockerfile": DIFFICULT})
    compose = "services:\n  client:\n    build: .\n  db:\n    image: postgres\n"
    first_task(bench.tasks / "many", **{"docker-compose.yaml": compose, "Dockerfile": "FROM secret/image:1\nWORKDIR /root\n"})
    done = bench.start("check", str(bench.tasks))
    assert done.returncode == 3
    found = document(done)["tasks"]
    assert isinstance(found, dict)
    assert found["hard"]["obstacles"] == [
        "Dockerfile:2: RUN apt-get install -y no-such-package-x: not on this machine: no-such-package-x",
        "Dockerfile:3: RUN pip install numpy: it installs packages",
        "Dockerfile:4: COPY --from=other /a /b: it takes files of another image",
    ]
    assert found["many"]["obstacles"] == [
        "Dockerfile:1: FROM secret/image:1: what this image holds is not known without it",
        "Dockerfile:2: WORKDIR /root: /root is the machine's own",
        "docker-compose.yaml: 2 services (client, db)",
    ]


def test_an_agent_is_graded_and_a_finished_trial_is_not_repeated(bench: Bench) -> None:
    task = harbor_task(bench.tasks / "second")
    model = bench.script(bash("cat /data/made.txt; echo Hello > hello.txt"), FINISH)
    arguments = ("run", str(task), "--job-name", "one", "-m", model)
    done = bench.start(*arguments)
    found = document(done)
    assert (done.returncode, found["resolved"], found["errors"]) == (0, 1, 0), done.stderr
    trial = bench.folder / "jobs" / "one" / "second__1"
    assert (trial / "verifier" / "reward.txt").read_text() == "1\n"
    result = json.loads((trial / "result.json").read_text())
    assert result["verifier_result"] == {"rewards": {"reward": 1.0}}
    assert result["agent_result"]["metadata"]["status"] == "finished"
    assert result["agent_info"]["name"] == "kcode"
    trajectory = json.loads((trial / "agent" / "trajectory.json").read_text())
    assert trajectory["schema_version"] == "ATIF-v1.8"
    assert "a note" in json.dumps(trajectory)
    again = bench.start(*arguments)
    assert "1 of 1 were finished before" in again.stderr
    assert document(again) == found


SPOIL = f"""\
grep -rl {SECRET[:6]} /app /data /tests /logs 2>/dev/null; ls /tests /logs /solution
mkdir -p /app/bin && printf '#!/bin/sh\\nexit 0\\n' > /app/bin/uvx && chmod +x /app/bin/uvx
export PATH=/app/bin:$PATH
printf 'raise SystemExit(0)' | tee pytest.py conftest.py sitecustomize.py > usercustomize.py
(while true; do mkdir -p /logs/verifier; echo 1 > /logs/verifier/reward.txt; sleep 0.1; done) > /dev/null 2>&1 &
"""


@pytest.mark.slow
def test_the_agent_sees_no_tests_and_its_leavings_do_not_grade(bench: Bench) -> None:
    dockerfile = "FROM python:3.13\nWORKDIR /app\nENV PATH=/app/bin:$PATH\n"
    task = harbor_task(bench.tasks / "second", **{"environment/Dockerfile": dockerfile})
    done = bench.start("run", str(task), "--job-name", "one", "-m", bench.script(bash(SPOIL), FINISH))
    assert document(done)["unresolved"] == 1, done.stderr
    trial = bench.folder / "jobs" / "one" / "second__1"
    seen = [line for line in (trial / "agent/session/transcript.jsonl").read_text().splitlines() if "grep -rl" not in line]
    assert "No such file" in "\n".join(seen)
    assert "test_outputs" not in "\n".join(seen)
    assert "FAILED ../tests/test_outputs.py::test_greeting" in (trial / "verifier" / "test-stdout.txt").read_text()


@pytest.mark.slow
def test_an_error_is_tried_again_and_a_reward_of_a_link_is_none(bench: Bench) -> None:
    task = harbor_task(bench.tasks / "second", **{"tests/test.sh": "ln -s /etc/hostname /logs/verifier/reward.txt\n"})
    failing = bench.script({"error": "the model is gone"})
    arguments = ("run", str(task), "--job-name", "one", "-m", failing)
    done = bench.start(*arguments)
    assert (done.returncode, document(done)["errors"]) == (2, 1)
    Path(failing.removeprefix("scripted:")).write_text(json.dumps({"replies": [FINISH]}))
    results = document(bench.start(*arguments))["results"]
    assert results == {"second__1": {"task": "second", "reward": None, "exception": "RewardFileNotFoundError"}}
