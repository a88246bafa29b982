"""rewrite_function: exactly one definition changes, wherever it stands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kcode.tools.functions import rewritten
from kcode.tools.refusal import Refusal
from kcode.tools.rewrite_function import RewriteFunctionArguments, RewriteFunctionTool
from kcode.tools.textfile import ReadFiles
from kcode.tools.tool import Outcome
from kcode_sandbox.sandbox import Sandbox

Call = Callable[..., Awaitable[Outcome]]

PYTHON = '''"""Doc."""
import os


@cache
def area(w, h):
    return w + h


class Box:
    @property
    def size(self):
        return 1

    @size.setter
    def size(self, value):
        self._size = value

    def volume(self):
        if self.flat:
            return 0
        return 2


def last(): return 3
'''


def apply(path: str, text: str, name: str, code: str) -> str:
    for start, end, new in reversed(rewritten(path, text, name, code).spans):
        text = text[:start] + new + text[end:]
    return text


def test_a_function_keeps_its_decorators() -> None:
    assert apply("a.py", PYTHON, "area", "def area(w, h):\n    return w * h\n") == PYTHON.replace("w + h", "w * h")


def test_new_decorators_replace_the_old_ones() -> None:
    code = "@lru_cache(1)\ndef area(w, h):\n    return w * h"
    assert apply("a.py", PYTHON, "area", code) == PYTHON.replace("w + h", "w * h").replace("@cache", "@lru_cache(1)")


@pytest.mark.parametrize("margin", ["", "    ", "\t", "        "])
def test_a_method_is_indented_to_where_it_stood(margin: str) -> None:
    lines = ["def volume(self):", "    if self.deep:", "", "        return 5", "    return 6"]
    code = "\n".join(margin + line if line else line for line in lines)
    new = "    def volume(self):\n        if self.deep:\n\n            return 5\n        return 6\n"
    old = "    def volume(self):\n        if self.flat:\n            return 0\n        return 2\n"
    assert apply("a.py", PYTHON, "Box.volume", code) == PYTHON.replace(old, new)
    assert apply("a.py", PYTHON, "volume", f"```python\n{code}\n```") == PYTHON.replace(old, new)


def test_the_class_around_a_method_is_not_repeated() -> None:
    code = "class Box:\n    def volume(self):\n        return 7\n"
    old = "        if self.flat:\n            return 0\n        return 2\n"
    assert apply("a.py", PYTHON, "Box.volume", code) == PYTHON.replace(old, "        return 7\n")


def test_properties_are_told_apart_by_their_decorators() -> None:
    code = "@size.setter\ndef size(self, value):\n    self._size = max(0, value)\n"
    assert apply("a.py", PYTHON, "Box.size", code) == PYTHON.replace("= value", "= max(0, value)")
    with pytest.raises(Refusal, match=r"Box\.size at line 12, Box\.size at line 16"):
        apply("a.py", PYTHON, "Box.size", "def size(self):\n    return 2\n")


def test_strings_keep_their_lines_and_docstrings_move() -> None:
    text = "class A:\n    def f(self):\n        return 1\n"
    code = 'def f(self):\n    """One.\n\n    Two.\n    """\n    return """\nmargin\n  two\n"""\n'
    assert apply("a.py", text, "f", code) == (
        'class A:\n    def f(self):\n        """One.\n\n        Two.\n        """\n        return """\nmargin\n  two\n"""\n'
    )
    indented = "".join(
        f"    {line}\n" if line and line not in {"margin", "  two", '"""'} else line + "\n" for line in code.split("\n")[:-1]
    )
    assert apply("a.py", text, "f", indented) == apply("a.py", text, "f", code)


def test_missing_imports_and_new_functions_are_added_and_other_code_is_left_out() -> None:
    code = (
        "import os\nimport math\n\ndef double(x):\n    return 2 * x\n\n"
        "def area(w, h):\n    return math.prod([w, h])\n\nprint(area(1, 2))\n"
    )
    result = rewritten("a.py", PYTHON, "area", code)
    assert apply("a.py", PYTHON, "area", code) == PYTHON.replace("import os\n", "import os\nimport math\n").replace(
        "@cache", "def double(x):\n    return 2 * x\n\n\n@cache"
    ).replace("w + h", "math.prod([w, h])")
    assert result.notes == (
        "Added double.",
        "Added import math.",
        "Left out, because only area is replaced: `print(area(1, 2))`.",
    )


@pytest.mark.parametrize(
    ("path", "text", "name", "code", "expected"),
    [
        (
            "a.js",
            "export const f = (a) => a - 1;\nf(2);\n",
            "f",
            "function f(a) { return a + 1; }",
            "export function f(a) { return a + 1; }\nf(2);\n",
        ),
        (
            "a.js",
            "class A {\n  f(a) {\n    return 1;\n  }\n}\n",
            "A.f",
            "f(a) {\n  return 2;\n}",
            "class A {\n  f(a) {\n    return 2;\n  }\n}\n",
        ),
        (
            "a.ts",
            "export class A {\n  f(a: number): number { return 1; }\n}\n",
            "f",
            "async f(a: number) { return 2; }",
            "export class A {\n  async f(a: number) { return 2; }\n}\n",
        ),
        ("a.js", "const o = {\n  m() { return 1; },\n};\n", "m", "m() { return 2; }", "const o = {\n  m() { return 2; },\n};\n"),
        (
            "a.go",
            "package m\n\nfunc (t *T) F() int {\n\treturn 1\n}\n",
            "T.F",
            "func (t *T) F() int {\n\treturn 2\n}",
            "package m\n\nfunc (t *T) F() int {\n\treturn 2\n}\n",
        ),
        (
            "a.rs",
            "impl P {\n    #[inline]\n    pub fn f(&self) -> i32 { 1 }\n}\n",
            "P::f",
            "pub fn f(&self) -> i32 {\n    2\n}",
            "impl P {\n    #[inline]\n    pub fn f(&self) -> i32 {\n        2\n    }\n}\n",
        ),
        (
            "A.java",
            "class A {\n  int f() { return 1; }\n}\n",
            "A.f",
            "int f() {\n  return 2;\n}",
            "class A {\n  int f() {\n    return 2;\n  }\n}\n",
        ),
        (
            "a.c",
            "static int f(int a)\n{\n  return 1;\n}\n",
            "f",
            "static int f(int a)\n{\n  return 2;\n}\n",
            "static int f(int a)\n{\n  return 2;\n}\n",
        ),
        (
            "a.cpp",
            "namespace n {\nint C::f() { return 1; }\n}\n",
            "C::f",
            "int C::f() { return 2; }",
            "namespace n {\nint C::f() { return 2; }\n}\n",
        ),
        ("a.py", "class A:\n    x = 1\n\ny = 2\n", "A", "class A:\n    x = 3\n", "class A:\n    x = 3\n\ny = 2\n"),
    ],
)
def test_every_language(path: str, text: str, name: str, code: str, expected: str) -> None:
    assert apply(path, text, name, code) == expected


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("aera", "def aera(): ...", "it has: area, Box, Box.size, Box.volume, last"),
        ("area", "return w * h", "must be the whole definition of area"),
        ("area", "def other(w, h):\n    return w", "it defines other"),
        ("area", "def area(w, h):\nreturn w * h", "syntax errors"),
        ("area", "", "holds no definition"),
    ],
)
def test_what_cannot_be_done_is_said(name: str, code: str, words: str) -> None:
    with pytest.raises(Refusal) as refused:
        rewritten("a.py", PYTHON, name, code)
    assert words in str(refused.value)


async def test_the_tool_writes_and_shows_the_new_function(call: Call, workspace: Path) -> None:
    path = workspace / "a.py"
    path.write_bytes(PYTHON.replace("\n", "\r\n").encode())
    outcome = await call("rewrite_function", path="a.py", name="area", code="def area(w, h):\n    # product\n    return w * h\n")
    assert (
        path.read_bytes()
        == PYTHON.replace("w + h", "w * h")
        .replace("    return w *", "    # product\n    return w *")
        .replace("\n", "\r\n")
        .encode()
    )
    assert outcome.changed == ("a.py",)
    assert outcome.text.startswith("Rewrote area in a.py, lines 5-8.\n")
    assert "7\t    # product" in outcome.text
    same = await call("rewrite_function", path="a.py", name="area", code="def area(w, h):\n    # product\n    return w * h\n")
    assert "the same as the old one" in same.text


@pytest.mark.parametrize(
    ("name", "code", "old"),
    [
        ("area", "def area(w, h):\n    return 1\n", "def area(w, h):\n    return w + h"),
        ("area", "@wraps\ndef area(w, h):\n    return 1\n", "@cache\ndef area(w, h):\n    return w + h"),
        (
            "Box.volume",
            "def volume(self):\n    return 1\n",
            "def volume(self):\n    if self.flat:\n        return 0\n    return 2",
        ),
        (
            "Box.volume",
            "    def volume(self):\n        return 1\n",
            "    def volume(self):\n        if self.flat:\n            return 0\n        return 2",
        ),
        ("Box.size", "def size(self):\n    return 1\n", ""),
        ("nowhere", "def nowhere():\n    return 1\n", ""),
    ],
)
async def test_who_is_asked_is_shown_the_old_definition(
    sandbox: Sandbox, workspace: Path, name: str, code: str, old: str
) -> None:
    (workspace / "a.py").write_text(PYTHON)
    tool = RewriteFunctionTool(sandbox, ReadFiles())
    assert (await tool.before(RewriteFunctionArguments(path="a.py", name=name, code=code))).rstrip("\n") == old
    assert await tool.before(RewriteFunctionArguments(path="missing.py", name=name, code=code)) == ""
