"""Where the screen can be drawn, and what is said where it cannot."""

from __future__ import annotations

from tests.headless.conftest import Program


def test_a_redirected_standard_error_is_named_instead_of_an_empty_screen(program: Program) -> None:
    code, error = program.on_terminal("--sandbox", "workspace-write", "-m", program.script({"text": "x"}))
    assert (code, error.startswith("kcode: standard error is not a terminal (2>FILE?)")) == (1, True), error
