"""Small tasks in both layouts, and `kcode terminal-bench` as a process over them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TIMEOUT_S = 300
SECRET = "hidden-marker-81f3"
CHECKS = f"""\
from pathlib import Path


def test_greeting():  # {SECRET}
    assert Path("/app/hello.txt").read_text() == "Hello\\n"
"""
# As the published tasks have it.
TEST_SH = """\
#!/bin/bash
apt-get update
apt-get install -y curl
curl -LsSf https://astral.sh/uv/0.9.5/install.sh | sh
source $HOME/.local/bin/env
uvx -p 3.13 -w pytest==8.4.1 -w pytest-json-ctrf==0.3.5 pytest --ctrf /logs/verifier/ctrf.json /tests/test_outputs.py -rA
if [ $? -eq 0 ]; then echo 1 > /logs/verifier/reward.txt; else echo 0 > /logs/verifier/reward.txt; fi
"""
RUN_TESTS = """\
#!/bin/bash
apt-get update && apt-get install -y curl
curl -LsSf https://astral.sh/uv/0.7.13/install.sh | sh
source $HOME/.local/bin/env
uv init
uv add pytest==8.4.1
uv run pytest $TEST_DIR/test_outputs.py -rA
"""
DOCKERFILE = """\
FROM python:3.13-slim-bookworm
WORKDIR /app
COPY note.txt ./
RUN mkdir -p /data && \\
    cp note.txt /data/made.txt
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def harbor_task(folder: Path, **changed: str) -> Path:
    files = {
        "task.toml": 'schema_version = "1.4"\n[agent]\ntimeout_sec = 60.0\n[verifier]\ntimeout_sec = 60.0\n',
        "instruction.md": "Write Hello and a line end to /app/hello.txt.\n",
        "environment/Dockerfile": DOCKERFILE,
        "environment/note.txt": "a note\n",
        "tests/test.sh": TEST_SH,
        "tests/test_outputs.py": CHECKS,
        "solution/solve.sh": "#!/bin/bash\ncat /data/made.txt && echo Hello > /app/hello.txt\n",
    }
    return write(folder, files | changed)


def first_task(folder: Path, **changed: str) -> Path:
    files = {
        "task.yaml": "instruction: Write Hello to /app/hello.txt.\nparser_name: pytest\nmax_agent_timeout_sec: 60\n",
        "Dockerfile": DOCKERFILE,
        "docker-compose.yaml": "services:\n  client:\n    build: .\n",
        "note.txt": "a note\n",
        "run-tests.sh": RUN_TESTS,
        "tests/test_outputs.py": CHECKS,
        "solution.sh": "#!/bin/bash\necho Hello > hello.txt\n",
    }
    return write(folder, files | changed)


@dataclass(frozen=True, slots=True)
class Bench:
    """`kcode terminal-bench` as a user runs it, with its own home and everything in one folder."""

    folder: Path

    @property
    def tasks(self) -> Path:
        return self.folder / "tasks"

    def script(self, *replies: dict[str, object]) -> str:
        file = self.folder / f"script{len(list(self.folder.glob('script*')))}.json"
        file.write_text(json.dumps({"replies": replies}))
        return f"scripted:{file}"

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KCODE_", "COV_"))}
        return subprocess.run(
            [sys.executable, "-m", "kcode", "terminal-bench", *arguments, "--json"],
            cwd=self.folder,
            env=kept | {"KCODE_HOME": str(self.folder / "home")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "tasks").mkdir()
    return Bench(tmp_path)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The last line of --json."""
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found
