"""Attempts of another agent at the small bugs, with a program that stands for it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kcode.errors import StartError
from kcode_bench.bug_peer import LATE, Peer, find_program, run_rounds
from kcode_bench.bug_report import read_results
from kcode_bench.bug_set import load, read_manifest

MENDS = "097-multiply"
SLOW_S = 1.0
PROGRAM = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
values = dict(word.split("=", 1) for word in words if "=" in word)
repository = pathlib.Path(values["environment.cwd"])
output = pathlib.Path(words[words.index("-o") + 1])
if {answers}:
    if output.parent.name == "2":
        (repository / "{module}.py").write_text({source!r})
    answer = {{"extra": {{"response": {{"usage": {{"prompt_tokens": 100, "completion_tokens": 7}}}}}}}}
    info = {{"exit_status": "Submitted", "mini_version": "2.4.6"}}
    output.write_text(json.dumps({{"info": info, "messages": [answer, {{"role": "user"}}, answer]}}))
"""


def peer(folder: Path, *, answers: bool = True) -> Peer:
    bug = load(next(entry for entry in read_manifest() if entry.id == MENDS))
    program = folder / "mini"
    program.write_text(
        PROGRAM.format(python=sys.executable, answers=answers, module=bug.problem.entry_point, source=bug.problem.source)
    )
    program.chmod(0o755)
    return Peer(find_program(folder / "python"), "mini.yaml", "http://127.0.0.1:9/v1", "bwrap", 60.0)


def test_another_attempt_is_made_until_the_tests_pass_and_none_is_made_twice(tmp_path: Path) -> None:
    bug = load(next(entry for entry in read_manifest() if entry.id == MENDS))
    (result,) = run_rounds([bug], peer(tmp_path), 3, tmp_path / "out")
    assert (result.resolved, result.attempts, result.status) == (True, 2, "Submitted")
    assert (result.turns, result.prompt_tokens, result.completion_tokens) == (4, 400, 28), "of both attempts"
    lines = (tmp_path / "out" / "results.jsonl").read_text()
    assert [json.loads(line)["resolved"] for line in lines.splitlines()] == [False, True]
    assert run_rounds([bug], peer(tmp_path), 3, tmp_path / "out") == [result]
    assert (tmp_path / "out" / "results.jsonl").read_text() == lines
    assert read_results(tmp_path / "out") == {MENDS: result}


def test_a_peer_without_an_answer_of_the_model_is_not_judged(tmp_path: Path) -> None:
    bug = load(next(entry for entry in read_manifest() if entry.id == MENDS))
    with pytest.raises(StartError, match="without an answer of the model"):
        run_rounds([bug], peer(tmp_path, answers=False), 3, tmp_path / "out")
    assert not (tmp_path / "out" / "results.jsonl").exists()


@pytest.fixture
def model_server() -> Iterator[str]:
    """The address of a server that is there and lists its models."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_peer_that_gets_no_answer_in_its_time_has_failed_and_the_run_goes_on(tmp_path: Path, model_server: str) -> None:
    bugs = [load(entry) for entry in read_manifest()[:2]]
    slow = replace(peer(tmp_path, answers=False), base_url=model_server, time_limit_s=SLOW_S / 2)
    slow.program.write_text(f"#!/bin/sh\nexec sleep {SLOW_S}\n")
    results = run_rounds(bugs, slow, 1, tmp_path / "out")
    assert [(result.resolved, result.outcome, result.status) for result in results] == [(False, "done", LATE)] * 2
    slow.program.unlink()
    assert run_rounds(bugs, slow, 1, tmp_path / "out") == results, "a resumed run does not repeat them"


def test_a_peer_that_waits_for_a_server_that_is_gone_is_not_judged(tmp_path: Path) -> None:
    bug = load(read_manifest()[0])
    slow = replace(peer(tmp_path, answers=False), time_limit_s=SLOW_S / 2)
    slow.program.write_text(f"#!/bin/sh\nexec sleep {SLOW_S}\n")
    with pytest.raises(StartError, match="without an answer of the model"):
        run_rounds([bug], slow, 1, tmp_path / "out")
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_missing_peer_is_told_with_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="make bench-mini installs it"):
        find_program(tmp_path / "python")
