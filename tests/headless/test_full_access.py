"""Without walls only for who says so twice."""

from __future__ import annotations

from tests.headless.conftest import Program


def test_on_a_terminal_full_access_is_typed_once_more(program: Program) -> None:
    script = program.script({"text": "x"})
    code, error = program.on_terminal("--sandbox", "danger-full-access", "-m", script, typed="yes\n")
    assert (code, "was not confirmed" in error) == (1, True), error
