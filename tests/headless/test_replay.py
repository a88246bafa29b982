"""`kcode replay`, as a user runs it."""

from __future__ import annotations

from tests.headless.conftest import Inside, Program


def test_the_first_step_that_differs_is_shown(inside: Inside, program: Program, fixing: tuple[dict[str, object], ...]) -> None:
    assert inside("-p", "fix add", "-m", program.script(*fixing))[0] == 0
    (transcript,) = program.transcripts()
    before = transcript.read_bytes()
    fixed = (program.workspace / "calc.py").read_text()
    code, out, _ = inside("replay", "-m", program.script(*fixing))
    assert (code, out) == (0, "3 steps replayed from step 1, all as recorded\n")
    code, out, _ = inside("replay", "--from", "3", "-m", program.script(*fixing, resume=True))
    assert (code, out) == (0, "1 steps replayed from step 3, all as recorded\n")
    other = {"calls": [{"name": "str_replace", "arguments": {"path": "calc.py", "old": "a - b", "new": "b - a"}}]}
    code, out, _ = inside("replay", "-m", program.script(fixing[0], other, fixing[2]))
    assert code == 3
    assert out.startswith("step 2 is the first that differs:\n--- recorded\n+++ now\n")
    assert '"new": "a + b"' in out
    assert '"new": "b - a"' in out
    assert transcript.read_bytes() == before, "replaying leaves no trace in the session"
    assert (program.workspace / "calc.py").read_text() == fixed, "no tool runs"
    assert program.transcripts() == [transcript]
