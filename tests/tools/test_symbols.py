"""Definitions and syntax errors in every language kcode has a grammar for."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcode.tools.symbols import named, symbols
from kcode.tools.syntax import GRAMMARS, faults, introduced_faults, language_of, parse

DATA = Path(__file__).resolve().parents[1] / "data" / "sources"
# The definitions in tests/data/sources/NAME.txt with their first and last lines.
DEFINITIONS = {
    "a.py": "f 1-4; f.inner 4-4; C 6-11; C.p 8-9; C.g 10-11; late 13-13",
    "a.js": "A 1-6; A.foo 3-3; A.handler 4-5; f 7-7; h 8-8; A.k 9-9; o.m 10-10; gen 11-11",
    "a.ts": "A 1-4; A.constructor 2-2; A.foo 3-3; D 5-9; D.bar 7-8; I 10-10; E 11-11; N 12-14; N.q 13-13; default 15-15",
    "a.tsx": "App 1-1",
    "a.go": "T 3-3; T.Foo 5-5; Stack.Push 6-6; Bar 7-8",
    "a.rs": "P 1-2; P.a 4-5; tests 7-9; tests.z 8-8; Q 10-10; Q.d 10-10",
    "A.java": "A 1-6; A.f 2-3; A.A 4-4; A.E 5-5; I 7-7; I.g 7-7",
    "a.c": "h 1-3; S 4-4; make 5-5",
    "a.cpp": "n 1-8; n.C 2-7; n.C.f 5-5; n.C.~C 6-6; n.C.g 9-9",
}


def source_of(name: str) -> str:
    return (DATA / f"{name}.txt").read_text()


@pytest.mark.parametrize("path", DEFINITIONS)
def test_definitions_with_their_lines(path: str) -> None:
    source = source_of(path)
    found = [f"{symbol.qualified} {symbol.start_line}-{symbol.end_line}" for symbol in symbols(path, source)]
    assert "; ".join(found) == DEFINITIONS[path]
    assert faults(path, source) == ()


def test_every_grammar_loads() -> None:
    assert {language: parse(language, b"").root_node.child_count for language in GRAMMARS} == dict.fromkeys(GRAMMARS, 0)


def test_kinds_and_core() -> None:
    source = source_of("a.py")
    kinds = {symbol.qualified: symbol.kind for symbol in symbols("a.py", source)}
    assert kinds == {"f": "function", "f.inner": "function", "C": "class", "C.p": "method", "C.g": "method", "late": "function"}
    first = symbols("a.py", source)[0]
    assert (first.start_line, first.core_line) == (1, 3)
    assert source.encode()[first.core_byte :].startswith(b"def f():")


def test_names_may_be_qualified_in_part() -> None:
    found = symbols("a.cpp", source_of("a.cpp"))
    assert [symbol.qualified for symbol in named(found, "C::f")] == ["n.C.f"]
    assert [symbol.qualified for symbol in named(found, "g()")] == ["n.C.g"]
    assert named(found, "X::f") == ()


def test_unknown_languages_have_no_definitions() -> None:
    assert language_of("README.md") is None
    assert symbols("README.md", "def f(): ...") == ()
    assert faults("data.txt", "def f(:") == ()


def test_bytes_are_offsets_into_utf_8() -> None:
    source = "# é\ndef f():\n    return 'ü'\n"
    (symbol,) = symbols("a.py", source)
    assert source.encode()[symbol.start_byte : symbol.end_byte].decode() == "def f():\n    return 'ü'"


@pytest.mark.parametrize(
    ("path", "before", "after", "line"),
    [
        ("a.py", "def f():\n    return 1\n", "def f():\n  x = 1\n    return 1\n", 3),
        ("a.py", "x = 1\n", "x = (1\n", 1),
        ("a.js", "f(1);\n", "f(1;\n", 1),
        ("a.go", "package m\nfunc f() {\n}\n", "package m\nfunc f() {\n", 2),
        ("a.rs", "fn f() {}\n", "fn f( {}\n", 1),
        ("A.java", "class A { int f() { return 1; } }\n", "class A { int f() { return 1 } }\n", 1),
        ("a.c", "int f(void) { return 0; }\n", "int f(void) { return 0;\n", 1),
    ],
)
def test_errors_that_an_edit_introduced(path: str, before: str, after: str, line: int) -> None:
    found = introduced_faults(path, before, after)
    assert [fault.line for fault in found][:1] == [line]
    assert introduced_faults(path, after, "\n" + after) == ()
    assert introduced_faults(path, after, before) == ()


def test_an_old_error_behind_a_repaired_one_is_not_new() -> None:
    before = "def f(:\n    pass\n\ndef g(:\n    pass\n"
    assert introduced_faults("a.py", before, before.replace("f(:", "f():")) == ()


def test_deep_nesting_is_survived() -> None:
    source = "x = " + "(" * 5000 + ")" * 5000 + "\n"
    assert isinstance(faults("a.py", source), tuple)
    assert symbols("a.py", "[" * 5000) == ()
