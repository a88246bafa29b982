"""What the model is shown and asked for a rewrite, and what its answer means."""

from __future__ import annotations

import pytest

from kcode.guided.rewrite import MAX_FAILING_CHARS, MAX_FILE_CHARS, brief, code_of, head_of, is_new
from tests.guided.conftest import suspect

METHOD = '''class Box:
    @property
    def size(self) -> int:
        """The size.

        In cells.
        """
        return self.w * self.h
'''


@pytest.mark.parametrize(
    ("text", "name", "head"),
    [
        (METHOD, "Box.size", '@property\ndef size(self) -> int:\n    """The size.\n\n    In cells.\n    """\n'),
        ("def f(x):\n    return x\n", "f", "def f(x):\n"),
        ("def f(x): return x\n", "f", ""),
        (
            "def f(x):\n    '''Pages.\x0c Lines.\u2028Ends.'''\n    return x\n",
            "f",
            "def f(x):\n    '''Pages.\x0c Lines.\u2028Ends.'''\n",
        ),
        ("x = 1\r\ndef f(x):\r\n    return x\r\n", "f", "def f(x):\r\n"),
    ],
)
def test_head_is_all_before_the_statements(text: str, name: str, head: str) -> None:
    assert head_of(suspect("a.py", text, name)) == head


def test_brief_shows_task_failures_and_each_file_once() -> None:
    text = "def first(x):\n    return x\n\n\ndef second(x):\n    return first(x)\n"
    shown = brief("fix it", "FAILED test_x", [suspect("a.py", text, "first"), suspect("a.py", text, "second")])
    assert shown.startswith("fix it\n")
    assert "FAILED test_x" in shown
    assert shown.count(text) == 1
    assert f"a.py:\n```python\n{text}```" in shown
    assert "FAILED" + "x" * MAX_FAILING_CHARS not in brief("fix it", "FAILED" + "x" * 9999, [suspect("a.py", text, "first")])


def test_long_file_is_shown_by_its_head_and_the_suspect() -> None:
    filler = "".join(f"def f{n}():\n    return {n}\n\n\n" for n in range(1000))
    text = f"import os\n\n\n{filler}class A:\n    def last(self):\n        return os.name\n"
    shown = brief("fix it", "FAILED", [suspect("a.py", text, "A.last")])
    assert len(shown) < MAX_FILE_CHARS
    assert "import os" in shown
    assert "def last(self):\n    return os.name" in shown
    assert "f500" not in shown


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\ndef f():\n    return 1\n", "def f():\n    return 1"),
        ("```python\ndef f():\n    return 1\n```\nThat is all.", "def f():\n    return 1"),
        ("```python\n", ""),
        ("I cannot.", ""),
        ("", ""),
    ],
)
def test_code_is_what_stands_in_the_block(answer: str, code: str) -> None:
    assert code_of(answer) == code


def test_a_version_is_new_once_whatever_its_margin_and_blank_lines() -> None:
    tried: set[str] = set()
    assert is_new("def f():\n    return 1", tried)
    assert not is_new("    def f():\n\n        return 1  \n", tried)
    assert is_new("def f():\n  return 1", tried)


def test_all_suspects_of_a_long_file_are_shown() -> None:
    text = "import os\n\n" + "\n\n".join(f"def f{number}():\n    return '{'x' * 500}{number}'" for number in range(20)) + "\n"
    shown = brief("fix it", "FAILED", [suspect("a.py", text, "f3"), suspect("a.py", text, "f17")])
    assert "x3'" in shown
    assert "x17'" in shown
    assert "x9'" not in shown
    assert len(shown) < MAX_FILE_CHARS


def test_files_are_shown_whole_as_long_as_they_are_short_together() -> None:
    texts = {
        name: f"TOP = '{'t' * 2000}'\n\n\ndef {name}():\n    return {'x' * 1500!r}\n\n\nEND = {name!r}\n" for name in ("a", "b")
    }
    shown = brief("fix it", "FAILED", [suspect(f"{name}.py", text, name) for name, text in texts.items()])
    assert "END = 'a'" in shown
    assert "END = 'b'" not in shown
    assert "def b():" in shown
