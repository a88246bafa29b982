"""Stands in for the kcode command: `fake_kcode.py PLAN -p … --cd DIR …`.

PLAN is a folder. `NAME.py` in it replaces the repository's NAME.py; `NAME.exit` holds an exit code for that repository;
each call is logged in `calls`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    plan, arguments = Path(sys.argv[1]), sys.argv[2:]
    repository = Path(arguments[arguments.index("--cd") + 1])
    name = repository.name
    with (plan / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    exit_code = plan / f"{name}.exit"
    if exit_code.exists():
        sys.stderr.write(f"the engine said no to {name}\n")
        return int(exit_code.read_text())
    fix = plan / f"{name}.py"
    if fix.exists():
        (repository / fix.name).write_text(fix.read_text())
    usage = {"prompt_tokens": 900, "cached_tokens": 300, "completion_tokens": 70}
    report = {
        "status": "finished",
        "result": "done",
        "usage": usage,
        "turns": 1,
        "attempts": 2,
        "model": "fake",
        "session_id": "s",
    }
    sys.stdout.write(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
