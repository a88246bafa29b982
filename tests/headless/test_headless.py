"""Headless runs from the outside: what is printed where, and how they end."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.headless.conftest import TIMEOUT_S, Inside, Program

Replies = tuple[dict[str, object], ...]
DIFF = "-    return a - b\n+    return a + b\n"


def bash(command: str) -> dict[str, object]:
    return {"calls": [{"name": "bash", "arguments": {"command": command}}]}


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(program: Program, text: str) -> None:
    """Until the one transcript holds `text`."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if any(text in path.read_text() for path in program.transcripts()):
            return
        time.sleep(0.02)
    raise AssertionError(f"no transcript ever held {text!r}")


def test_text_goes_to_stdout_and_progress_to_stderr(program: Program, inside: Inside, fixing: Replies) -> None:
    code, stdout, stderr = inside("-p", "fix add", "-m", program.script(*fixing))
    assert code == 0
    assert stdout.startswith("add adds now\n\ndiff --git a/calc.py b/calc.py\n")
    assert stdout.endswith(DIFF)
    assert "  read calc.py\n" in stderr
    assert "    +1 -1 lines\n" in stderr
    assert "finished after 3 steps" in stderr


def test_json_is_one_document(program: Program, inside: Inside, fixing: Replies) -> None:
    _, stdout, stderr = inside("-p", "fix add", "-m", program.script(*fixing), "--output-format", "json")
    document = json.loads(stdout)
    usage = document.pop("usage")
    assert set(usage) == {"prompt_tokens", "cached_tokens", "completion_tokens"}
    assert usage["prompt_tokens"] > usage["cached_tokens"] > 0
    assert document.pop("duration_s") > 0
    assert document.pop("session_id") == program.transcripts()[0].stem
    assert DIFF in document.pop("diff")
    assert document == {
        "status": "finished",
        "reason": "the model called finish",
        "result": "add adds now",
        "turns": 3,
        "model": "scripted",
        "profile": "generic",
        "sandbox": document["sandbox"],
        "exit_code": 0,
        "attempts": 1,
        "violations": [],
        "compactions": [],
    }
    assert (stdout.count("\n"), stderr) == (1, "")


def test_stream_json_has_the_shape_consumers_parse(program: Program, inside: Inside, fixing: Replies) -> None:
    _, stdout, _ = inside("-p", "fix add", "-m", program.script(*fixing), "--output-format", "stream-json")
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [line["type"] for line in lines] == ["system", *["assistant", "user"] * 3, "result"]
    assert len({line["session_id"] for line in lines}) == 1
    assert lines[0]["subtype"] == "init"
    text, use = lines[1]["message"]["content"]
    assert text == {"type": "text", "text": "I look first."}
    assert (use["type"], use["name"], use["input"]) == ("tool_use", "read", {"path": "calc.py"})
    (result,) = lines[2]["message"]["content"]
    assert (result["type"], result["tool_use_id"], result["is_error"]) == ("tool_result", use["id"], False)
    last = lines[-1]
    assert (last["subtype"], last["is_error"], last["num_turns"], last["result"]) == ("success", False, 3, "add adds now")


def test_output_dir_gets_result_transcript_and_patch(program: Program, inside: Inside, fixing: Replies, tmp_path: Path) -> None:
    out = tmp_path / "out" / "deep"
    arguments = ("-p", "fix add", "-m", program.script(*fixing), "--output-dir", str(out))
    _, stdout, _ = inside(*arguments, "--output-format", "json")
    assert json.loads((out / "result.json").read_text()) == json.loads(stdout)
    assert (out / "transcript.jsonl").read_bytes() == program.transcripts()[0].read_bytes()
    assert DIFF in (out / "diff.patch").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["diff.patch", "result.json", "transcript.jsonl"]


def test_prompt_comes_from_a_file_or_standard_input(program: Program, inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "prompt.md").write_text("from a file\n")
    model = program.script({"text": "ok"})
    assert inside("--prompt-file", str(tmp_path / "prompt.md"), "-m", model)[0] == 0
    assert inside("-m", model, stdin="from a pipe")[0] == 0
    assert inside("-p", "-", "-m", model, stdin="from a dash")[0] == 0
    assert inside("a word", "-m", model)[0] == 0
    said = [record["text"] for path in program.transcripts() for record in records(path) if record["type"] == "turn"]
    assert sorted(map(str, said)) == ["a word", "from a dash", "from a file\n", "from a pipe"]


@pytest.mark.parametrize(
    ("arguments", "replies", "code", "status"),
    [
        ((), ({"error": "HTTP 500"},), 2, "error"),
        (("--max-turns", "1"), (bash("true"), {"text": "never"}), 3, "limit"),
        (("--max-tokens", "1"), (bash("true"), {"text": "never"}), 3, "limit"),
        (("--time-limit", "0.7"), (bash("sleep 60"),), 3, "limit"),
        ((), (bash("false"),) * 8, 3, "loop"),
    ],
    ids=["model fails", "steps", "tokens", "time", "loop"],
)
def test_exit_code_tells_how_it_ended(
    program: Program, inside: Inside, arguments: tuple[str, ...], replies: Replies, code: int, status: str
) -> None:
    ended, stdout, _ = inside("-p", "go", "-m", program.script(*replies), "--output-format", "json", *arguments)
    assert (ended, json.loads(stdout)["status"]) == (code, status)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_turn_with_a_complete_transcript(program: Program, number: signal.Signals) -> None:
    process = program.start("-p", "go", "-m", program.script(bash("sleep 60")), "--output-format", "json")
    wait_for(program, '"type":"checkpoint"')
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 4
    assert json.loads(stdout)["status"] == "interrupted"
    kinds = [record["type"] for record in records(program.transcripts()[0])]
    assert kinds[-4:] == ["checkpoint", "answered", "checkpoint", "turn_end"]


def test_killed_in_the_middle_of_a_step_it_goes_on_with_nothing_lost(program: Program) -> None:
    first = bash("echo before > before.txt")
    model = program.script(first, bash("sleep 60"), {"text": "I was interrupted, now all is done."}, resume=True)
    process = program.start("-p", "do both", "-m", model)
    wait_for(program, "sleep 60")
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    (path,) = program.transcripts()
    before = records(path)
    with path.open("ab") as torn:
        torn.write(b'{"type":"said","mess')
    done = program.run("-c", "-p", "go on", "-m", model, "--output-format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"] == "I was interrupted, now all is done."
    after = records(path)
    assert after[: len(before)] == before
    opened, orphan = after[len(before) : len(before) + 2]
    assert opened["type"] == "opened"
    assert "kcode ended before this call did" in json.dumps(orphan)
    assert program.transcripts() == [path]
    assert (program.workspace / "before.txt").read_text() == "before\n"


def test_resumed_session_keeps_its_model_unless_told(program: Program, inside: Inside) -> None:
    model = program.script({"text": "one"}, {"text": "two"}, resume=True)
    assert inside("-p", "a", "-m", model)[0] == 0
    session = program.transcripts()[0].stem
    assert inside("-r", session[:18], "-p", "b")[:2] == (0, "two\n")


def test_sandbox_holds_by_default(program: Program, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    model = program.script(bash(f"echo x > {outside}; echo in > inside.txt"), {"text": "tried"})
    done = program.run("-p", "go", "-m", model, "--sandbox", "workspace-write", "--output-format", "json")
    if done.returncode == 1 and "bwrap" in done.stderr:
        pytest.skip(f"no bubblewrap here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert not outside.exists()
    assert (program.workspace / "inside.txt").read_text() == "in\n"
    assert "workspace-write" in json.loads(done.stdout)["sandbox"]


def test_reader_that_goes_away_ends_the_run_quietly(program: Program, fixing: Replies) -> None:
    process = program.start("-p", "fix add", "-m", program.script(*fixing), "--output-format", "stream-json")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert "Traceback" not in stderr
    assert process.returncode == 4


def test_two_runs_in_one_folder_at_once_both_finish(program: Program) -> None:
    model = program.script(bash("sleep 0.3; date > $$.txt"), {"text": "done"})
    both: list[subprocess.Popen[str]] = [program.start("-p", "go", "-m", model) for _ in range(2)]
    for process in both:
        process.communicate(timeout=TIMEOUT_S)
    assert [process.returncode for process in both] == [0, 0]
    assert len(program.transcripts()) == 2


def test_what_the_sandbox_stopped_is_told_to_model_user_and_machine(program: Program) -> None:
    look = {"name": "bash", "arguments": {"command": "cat /home/nobody-has-this-name/.netrc"}}
    model = program.script({"calls": [look]}, {"text": "Done."})
    done = program.run("-p", "Look", "-m", model, "--output-format", "stream-json", KCODE_SANDBOX="workspace-write")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    stopped = [line for line in lines if line.get("subtype") == "violation"]
    assert [(line["kind"], line["what"]) for line in stopped] == [("read", "/home/nobody-has-this-name/.netrc")]
    result = next(line for line in lines if line["type"] == "user")["message"]["content"][0]["content"]
    assert result.count("[sandbox: ") == 1
    assert [violation["kind"] for violation in lines[-1]["violations"]] == ["read"]
