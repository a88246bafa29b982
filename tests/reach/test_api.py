"""The Python API: the page of examples runs, and importing kcode stays cheap."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kcode
from kcode import Session
from kcode.errors import ConfigError, StartError

ROOT = Path(__file__).resolve().parents[2]
EDIT = {"name": "str_replace", "arguments": {"path": "calc.py", "old": "a - b", "new": "a + b"}}
REPLIES = ({"text": "I repair it.", "calls": [EDIT]}, {"text": "add adds now"})


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A home of its own, a workspace `shop`, and a model that repairs it."""
    for name in [name for name in os.environ if name.startswith("KCODE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KCODE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KCODE_SANDBOX", "danger-full-access")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "calc.py").write_text("def add(a, b):\n    return a - b\n")
    (tmp_path / "script.json").write_text(json.dumps({"replies": REPLIES}))
    return f"scripted:{tmp_path / 'script.json'}"


def test_the_examples_of_the_page_run_as_written(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    space: dict[str, object] = {"MODEL": model, "__name__": "page"}
    for block in blocks:
        (tmp_path / "shop" / "calc.py").write_text("def add(a, b):\n    return a - b\n")
        exec(compile(block, "docs/api.md", "exec"), space)  # the page is ours
    said = capsys.readouterr().out
    assert "finished - add adds now" in said
    assert "-    return a - b\n+    return a + b" in said
    assert "\n> edit calc.py" in said or "\n> str_replace calc.py" in said
    assert "took back 'add() subtracts; repair it'" in said
    assert (tmp_path / "shop" / "calc.py").read_text().endswith("a - b\n"), "the last block changes nothing"


async def test_a_session_that_is_not_open_says_how_to_open_it(model: str) -> None:
    session = Session("shop", model=model)
    with pytest.raises(StartError, match="async with Session"):
        _ = session.id
    async with session:
        assert session.transcript.is_file()
    with pytest.raises(StartError, match="async with Session"):
        session.submit("again")


async def test_an_unknown_setting_is_an_error(model: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'colour'"):
        async with Session("shop", model=model, settings={"colour": "red"}):
            raise AssertionError("it opened")


def test_importing_kcode_loads_neither_the_api_nor_what_it_needs() -> None:
    code = (
        "import sys, kcode; print(sorted(n for n in sys.modules if n.startswith(('kcode', 'pydantic', 'torch', 'mcp', 'acp'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "['kcode']"
    code = "import sys; from kcode import Session; print(sorted({'torch', 'mcp', 'acp', 'textual'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_what_kcode_names_is_there() -> None:
    assert sorted(kcode.__all__) == sorted(name for name in kcode.__all__ if hasattr(kcode, name))
