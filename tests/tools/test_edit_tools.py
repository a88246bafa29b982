"""str_replace and create on real files in a real sandbox."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from kcode.events import DiffDisplay
from kcode.tools.tool import Outcome

Call = Callable[..., Awaitable[Outcome]]
SOURCE = "def add(a, b):\n    return a - b\n\n\ndef twice(a):\n    return add(a, a)\n"


def put(workspace: Path, name: str, content: str | bytes) -> Path:
    path = workspace / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


async def test_an_edit_changes_the_file_and_shows_the_place(call: Call, workspace: Path) -> None:
    path = put(workspace, "src/a.py", SOURCE)
    outcome = await call("str_replace", path="src/a.py", old="a - b", new="a + b")
    fixed = SOURCE.replace("a - b", "a + b")
    assert path.read_text() == fixed
    assert outcome.changed == ("src/a.py",)
    assert outcome.display == DiffDisplay("src/a.py", SOURCE, fixed)
    assert outcome.text.startswith("Edited src/a.py, line 2.\n1\tdef add(a, b):\n2\t    return a + b\n")


async def test_an_adapted_match_is_reported(call: Call, workspace: Path) -> None:
    path = put(workspace, "a.py", "class A:\n    def f(self):\n        x = 1\n        return x\n")
    outcome = await call("str_replace", path="a.py", old="  x = 1\n  return x\n", new="  x = 2\n  return x\n")
    assert "after adapting indentation" in outcome.text
    assert path.read_text() == "class A:\n    def f(self):\n        x = 2\n        return x\n"


async def test_a_file_changed_since_it_was_read_is_not_edited(call: Call, workspace: Path) -> None:
    path = put(workspace, "a.py", SOURCE)
    await call("read", path="a.py")
    path.write_text("# new first line\n" + SOURCE)
    outcome = await call("str_replace", path="./a.py", old="a - b", new="a + b")
    assert outcome.is_error
    assert "changed since it was read" in outcome.text
    assert "a - b" in path.read_text()
    await call("read", path="a.py")
    assert not (await call("str_replace", path="a.py", old="a - b", new="a + b")).is_error


async def test_own_edits_do_not_make_a_file_stale(call: Call, workspace: Path) -> None:
    path = put(workspace, "a.py", SOURCE)
    await call("read", path="a.py")
    await call("str_replace", path="a.py", old="a - b", new="a * b")
    outcome = await call("rewrite_function", path="a.py", name="twice", code="def twice(a):\n    return 2 * a\n")
    assert not outcome.is_error
    assert path.read_text() == "def add(a, b):\n    return a * b\n\n\ndef twice(a):\n    return 2 * a\n"


async def test_a_miss_shows_the_closest_lines_and_the_second_one_offers_a_rewrite(call: Call, workspace: Path) -> None:
    put(workspace, "a.py", SOURCE)
    first = await call("str_replace", path="a.py", old="def add(x, y):\n    return x - y", new="")
    assert first.is_error
    assert "closest lines are 1-2" in first.text
    assert "1\tdef add(a, b):\n2\t    return a - b" in first.text
    assert "create" not in first.text
    second = await call("str_replace", path="a.py", old="def add(x, y):\n    return (x - y)", new="")
    assert "write it whole with create" in second.text


async def test_copied_line_numbers_are_pointed_out(call: Call, workspace: Path) -> None:
    put(workspace, "a.py", SOURCE)
    shown = (await call("read", path="a.py", limit=2)).text.split("\n[")[0]
    assert "Leave out the line numbers" in (await call("str_replace", path="a.py", old=shown, new="x")).text


async def test_two_occurrences_are_named_by_line(call: Call, workspace: Path) -> None:
    put(workspace, "a.py", "x = 1\ny = 2\nx = 1\n")
    outcome = await call("str_replace", path="a.py", old="x = 1", new="x = 3")
    assert "stands 2 times in a.py (lines 1, 3)" in outcome.text
    assert not (await call("str_replace", path="a.py", old="x = 1", new="x = 3", replace_all=True)).is_error
    assert (workspace / "a.py").read_text() == "x = 3\ny = 2\nx = 3\n"


async def test_line_ends_bom_encoding_and_mode_are_kept(call: Call, workspace: Path) -> None:
    path = put(workspace, "run.py", b"\xef\xbb\xbfa = 1\r\nb = '\xc3\xa9'\r\n")
    path.chmod(0o755)
    await call("str_replace", path="run.py", old="a = 1\nb", new="a = 2\nc = 3\nb")
    assert path.read_bytes() == b"\xef\xbb\xbfa = 2\r\nc = 3\r\nb = '\xc3\xa9'\r\n"
    assert path.stat().st_mode & 0o777 == 0o755
    latin = put(workspace, "old.c", b"/* caf\xe9 */\nint x = 1;\n")
    await call("str_replace", path="old.c", old="x = 1", new="x = 2")
    assert latin.read_bytes() == b"/* caf\xe9 */\nint x = 2;\n"


async def test_only_new_syntax_errors_are_reported(call: Call, workspace: Path) -> None:
    put(workspace, "a.py", SOURCE)
    outcome = await call("str_replace", path="a.py", old="return add(a, a)", new="return add(a, a")
    assert "introduced syntax errors" in outcome.text
    assert "line 6" in outcome.text
    # The file is broken now; an edit elsewhere is not to blame.
    outcome = await call("str_replace", path="a.py", old="a - b", new="a + b")
    assert "syntax" not in outcome.text


async def test_files_that_cannot_be_edited_are_refused_with_advice(call: Call, workspace: Path) -> None:
    put(workspace, "image.png", b"\x89PNG\0\0")
    (workspace / "huge.txt").touch()
    os.truncate(workspace / "huge.txt", 11 << 20)
    for path, words in [
        ("image.png", "binary file"),
        ("huge.txt", "11.0 MB"),
        (".", "is a folder"),
        ("nowhere.py", "does not exist"),
        ("/etc/passwd", "Error"),
    ]:
        outcome = await call("str_replace", path=path, old="a", new="b")
        assert outcome.is_error
        assert words in outcome.text, outcome.text


async def test_create_writes_new_files_and_rewrites_only_what_was_read(call: Call, workspace: Path) -> None:
    created = await call("create", path="new/mod.py", content="x = (\n")
    assert (workspace / "new/mod.py").read_text() == "x = (\n"
    assert "syntax errors" in created.text
    put(workspace, "a.py", SOURCE)
    refused = await call("create", path="a.py", content="x = 1\n")
    assert "read it first" in refused.text
    assert (workspace / "a.py").read_text() == SOURCE
    await call("read", path="a.py")
    assert (await call("create", path="a.py", content="x = 1\n")).changed == ("a.py",)
    assert (workspace / "a.py").read_text() == "x = 1\n"
    # What it wrote it also knows.
    assert not (await call("create", path="new/mod.py", content="x = ()\n")).is_error


async def test_nothing_outside_the_workspace_is_changed(call: Call, workspace: Path) -> None:
    """Outside, inside means the sandbox's own /tmp: what is written there never counts as a change and never gets out."""
    outside = workspace.parent / "outside.txt"
    outside.write_text("keep")
    (workspace / "link.txt").symlink_to(outside)
    for path in ("../outside.txt", str(outside), "link.txt"):
        assert (await call("str_replace", path=path, old="keep", new="gone")).is_error
        outcome = await call("create", path=path, content="gone")
        assert outcome.changed == ()
    assert outside.read_text() == "keep"
