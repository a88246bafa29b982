"""read, grep and glob."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from kcode.tools.glob import translate
from kcode.tools.tool import Outcome
from kcode.tools.truncate import GREP_LINES, READ_CHARS

Call = Callable[..., Awaitable[Outcome]]


async def test_read_numbers_lines_and_says_where_to_go_on(call: Call, workspace: Path) -> None:
    (workspace / "a.txt").write_text("".join(f"line {number}\n" for number in range(1, 11)))
    assert (
        await call("read", path="a.txt", offset=3, limit=2)
    ).text == "3\tline 3\n4\tline 4\n[lines 3-4 of 10; go on with offset=5]"
    assert (await call("read", path="a.txt", offset=9)).text == "9\tline 9\n10\tline 10\n[lines 9-10 of 10]"
    assert "past the end: a.txt has 10 lines" in (await call("read", path="a.txt", offset=11)).text
    assert (await call("read", path=str(workspace / "a.txt"), limit=1)).text.startswith("1\tline 1\n")


async def test_read_is_bounded(call: Call, workspace: Path) -> None:
    (workspace / "long.txt").write_text("x" * 5000 + "\n" + "y" * 99 + "\n" * 3)
    assert "[3000 more characters in this line]" in (await call("read", path="long.txt")).text
    (workspace / "big.txt").write_text(("z" * 999 + "\n") * 500)
    text = (await call("read", path="big.txt")).text
    assert READ_CHARS - 1100 < len(text) < READ_CHARS + 100
    assert text.endswith("[lines 1-49 of 500; go on with offset=50]")


async def test_read_of_a_folder_lists_it(call: Call, workspace: Path) -> None:
    (workspace / "src" / "deep").mkdir(parents=True)
    (workspace / "src" / "a.py").write_text("1")
    (workspace / "src" / "deep" / "b.py").write_text("1")
    (workspace / "top.md").write_text("12")
    assert (await call("read", path=".")).text == "src/ (2 files)\ntop.md (2 bytes)"
    assert (await call("read", path="src")).text == "deep/ (1 file)\na.py (1 bytes)"
    assert (await call("read", path="./src/")).text == "deep/ (1 file)\na.py (1 bytes)"


async def test_read_of_empty_and_missing_files(call: Call, workspace: Path) -> None:
    (workspace / "empty").touch()
    assert (await call("read", path="empty")).text == "empty is empty."
    missing = await call("read", path="nope.py")
    assert missing.is_error
    assert missing.text == "Error: nope.py does not exist; find the right path with glob"


async def test_grep_modes(call: Call, workspace: Path) -> None:
    (workspace / "src").mkdir()
    (workspace / "src" / "a.py").write_text("import os\n\ndef find(x):\n    return x\n")
    (workspace / "b.js").write_text("function find() {}\n// find\n")
    assert (await call("grep", pattern=r"def \w+\(")).text == "src/a.py:3:def find(x):"
    assert (await call("grep", pattern="find", mode="files")).text == "b.js\nsrc/a.py"
    assert (await call("grep", pattern="find", mode="count")).text == "b.js:2\nsrc/a.py:1"
    assert (await call("grep", pattern="find", glob="*.py")).text == "src/a.py:3:def find(x):"
    assert (await call("grep", pattern="FIND", path="src", ignore_case=True)).text == "src/a.py:3:def find(x):"
    assert (await call("grep", pattern="find(", literal=True, path="b.js")).text == "b.js:1:function find() {}"
    assert (await call("grep", pattern="def", context=1)).text == "src/a.py-2-\nsrc/a.py:3:def find(x):\nsrc/a.py-4-    return x"


async def test_grep_says_what_is_wrong(call: Call, workspace: Path) -> None:
    (workspace / "a").write_text("x")
    assert (await call("grep", pattern="zzz")).text == "No match for 'zzz' in the workspace."
    assert "unclosed group" in (await call("grep", pattern="(")).text
    assert "nope" in (await call("grep", pattern="x", path="nope")).text
    assert (await call("grep", pattern="x", path="nope")).is_error
    # A pattern is never taken for an option.
    assert (await call("grep", pattern="--version")).text.startswith("No match for '--version'")


async def test_grep_is_bounded_and_skips_ignored_files(call: Call, workspace: Path) -> None:
    (workspace / ".git").mkdir()
    (workspace / ".gitignore").write_text("ignored.txt\n")
    (workspace / "ignored.txt").write_text("needle\n")
    (workspace / "many.txt").write_text("needle\n" * 300)
    text = (await call("grep", pattern="needle")).text
    assert text.count("\n") == GREP_LINES
    assert text.endswith("[100 more lines; narrow the pattern, the path or the glob]")
    assert "ignored" not in text


async def test_glob_lists_newest_first(call: Call, workspace: Path) -> None:
    for age, name in enumerate(["new.py", "src/old.py", "src/deep/older.py", "src/x.js"]):
        path = workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
        os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    assert (await call("glob", pattern="*.py")).text == "new.py\nsrc/old.py\nsrc/deep/older.py"
    assert (await call("glob", pattern="src/*.{py,js}")).text == "src/old.py\nsrc/x.js"
    assert (await call("glob", pattern="deep/*", path="src")).text == "src/deep/older.py"
    assert (await call("glob", pattern="*.go")).text == "No file matches '*.go' in the workspace."


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**/*.py", "a.py", True),
        ("**/*.py", "x/y/a.py", True),
        ("x/*.py", "x/y/a.py", False),
        ("x/**", "x/y/a.py", True),
        ("[ab].p?", "b.py", True),
        ("[!ab].py", "b.py", False),
        ("a.{py,js", "a.{py,js", True),
        ("a+b.py", "a+b.py", True),
        ("[", "[", True),
    ],
)
def test_glob_patterns(pattern: str, path: str, matches: bool) -> None:
    assert (translate(pattern).fullmatch(path) is not None) == matches


async def test_arguments_are_checked(call: Call) -> None:
    with pytest.raises(ValidationError):
        await call("read", path="a", offset=0)
    with pytest.raises(ValidationError):
        await call("read", path="a", lines=3)
