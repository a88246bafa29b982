"""Where the screen can be drawn, and what is said where it cannot."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from tests.headless.conftest import Program


def test_a_redirected_standard_error_is_named_instead_of_an_empty_screen(program: Program) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kcode", "--sandbox", "workspace-write", "-m", program.script({"text": "x"})]
    process = subprocess.Popen(
        command, cwd=program.workspace, env=program.environment(), stdin=theirs, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    assert process.returncode == 1
    assert error.startswith(b"kcode: standard error is not a terminal (2>FILE?)"), error
