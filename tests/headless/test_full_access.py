"""Without walls only for who says so twice."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from tests.headless.conftest import Program


def test_on_a_terminal_full_access_is_typed_once_more(program: Program) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "kcode", "--sandbox", "danger-full-access", "-m", program.script({"text": "x"})]
    process = subprocess.Popen(
        command, cwd=program.workspace, env=program.environment(), stdin=theirs, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    os.write(ours, b"yes\n")
    _, error = process.communicate(timeout=120)
    os.close(ours)
    assert (process.returncode, b"was not confirmed" in error) == (1, True), error
