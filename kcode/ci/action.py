"""The step of the GitHub action: its inputs become options of `kcode ci`, the summary becomes its outputs.

Inputs come as variables, so that no text of theirs is ever part of a script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

PREFIX = "CI_INPUT_"
# In order; each is the option of the same name.
VALUES = (
    *("test", "issue", "log", "event", "setup", "attempts", "test-timeout", "branch", "author", "remote", "base"),
    *("model", "base-url", "profile", "network", "max-turns", "max-tokens", "time-limit", "seed", "cd"),
)
LISTS = ("keep", "allow")
FLAGS = ("push", "open-pr", "draft")
OUTPUTS = {"status": "status", "branch": "branch", "commit": "commit", "pull-request": "pull_request", "reason": "reason"}
NO_FIX = 5


def value_of(name: str, environment: Mapping[str, str]) -> str:
    return environment.get(PREFIX + name.upper().replace("-", "_"), "").strip()


def arguments(environment: Mapping[str, str]) -> list[str]:
    """The command line of the inputs: empty ones are left out, lists have an item on each line."""
    given = [f"--{name}={value_of(name, environment)}" for name in VALUES if value_of(name, environment)]
    for name in LISTS:
        given += [f"--{name}={item.strip()}" for item in value_of(name, environment).splitlines() if item.strip()]
    return given + [f"--{name}" for name in FLAGS if value_of(name, environment) == "true"]


def outputs(summary: Path, exit_code: int) -> list[str]:
    """Lines for GITHUB_OUTPUT. A value is one line, whatever it holds, so that it cannot name another output."""
    found: dict[str, object] = {}
    if summary.is_file():
        found = cast("dict[str, object]", json.loads(summary.read_text(encoding="utf-8")))
    lines = [f"{name}={' '.join(str(found.get(key) or '').split())}" for name, key in OUTPUTS.items()]
    return [*lines, f"exit-code={exit_code}", f"output-dir={summary.parent}"]


def main() -> int:
    folder = Path(os.environ.get("RUNNER_TEMP", "."), "kcode-ci").resolve()
    # The checkout, which is the folder at hand, is not kcode's: nothing is imported from it.
    command = [sys.executable, "-P", "-m", "kcode", "ci", f"--output-dir={folder}", *arguments(os.environ)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    exit_code = subprocess.run(command, env=kept, check=False).returncode
    for variable, text in (
        ("GITHUB_OUTPUT", "\n".join(outputs(folder / "summary.json", exit_code)) + "\n"),
        ("GITHUB_STEP_SUMMARY", (folder / "body.md").read_text(encoding="utf-8") if (folder / "body.md").is_file() else ""),
    ):
        if os.environ.get(variable) and text:
            with Path(os.environ[variable]).open("a", encoding="utf-8") as file:
                file.write(text)
    return 0 if exit_code == NO_FIX and value_of("fail-without-fix", os.environ) == "false" else exit_code


if __name__ == "__main__":
    sys.exit(main())
