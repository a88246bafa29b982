"""The edit ladder as a pure function."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcode.tools.ladder import Ambiguous, Closest, Match, locate


def edited(text: str, old: str, new: str, *, replace_all: bool = False) -> tuple[str, str]:
    """(rung, new text) of a match."""
    found = locate(text, old, new, replace_all=replace_all)
    assert isinstance(found, Match), found
    for start, end in reversed(found.spans):
        text = text[:start] + found.new + text[end:]
    return found.rung, text


def test_exact_text_need_not_be_whole_lines() -> None:
    assert edited("a = b + c\n", "b +", "b -") == ("exact", "a = b - c\n")


def test_text_in_two_places_is_refused_with_their_lines() -> None:
    assert locate("x\ny\nx\n", "x", "z") == Ambiguous("exact", (1, 3))


def test_replace_all_replaces_every_exact_occurrence() -> None:
    assert edited("x y x\n", "x", "z", replace_all=True) == ("exact", "z y z\n")


def test_trailing_whitespace_may_differ_and_kept_lines_keep_theirs() -> None:
    text = "def f():   \n    return 1\t\n"
    assert edited(text, "def f():\n    return 1\n", "def f():\n    return 2\n") == (
        "trailing whitespace",
        "def f():   \n    return 2\n",
    )


def test_indentation_may_be_shifted_as_a_whole() -> None:
    text = "class A:\n    def f(self):\n        if x:\n            return 1\n\n        return 2\n"
    old = "if x:\n    return 1\n\nreturn 2"
    # A substring match of the first line alone would not do: the later lines are indented.
    assert edited(text, old, "if y:\n    return 3\n\nreturn 2") == (
        "indentation",
        "class A:\n    def f(self):\n        if y:\n            return 3\n\n        return 2\n",
    )


def test_indentation_may_be_too_deep_in_the_call() -> None:
    assert edited("if x:\n  a()\n  b()\n", "      a()\n      b()\n", "      a()\n      c()\n") == (
        "indentation",
        "if x:\n  a()\n  c()\n",
    )


def test_uneven_indentation_is_no_match() -> None:
    assert isinstance(locate("if x:\n        a()\n    b()\n", "a()\nb()\n", "c()\n"), Closest)


def test_new_lines_that_cannot_be_shifted_back_are_no_match() -> None:
    assert isinstance(locate("a()\nb()\n", "    a()\n    b()\n", "    a()\nc()\n"), Closest)


def test_typographic_punctuation_matches_plain_and_kept_lines_stay() -> None:
    text = "# it’s “fine” – really…\nx = 1\n"
    old = '# it\'s "fine" - really...\nx = 1\n'
    assert edited(text, old, '# it\'s "fine" - really...\nx = 2\n') == ("punctuation", "# it’s “fine” – really…\nx = 2\n")


def test_an_adapted_match_in_two_places_is_refused() -> None:
    assert locate("  f()\n  g()\nh()\n    f()\n    g()\n", "f()\ng()\n", "x()\n") == Ambiguous("indentation", (1, 4))


def test_deleting_whole_lines_leaves_no_empty_line() -> None:
    assert edited("a\n  b  \nc\n", "  b\n", "") == ("exact", "a\nc\n") or edited("a\n  b  \nc\n", "  b\n", "") == (
        "trailing whitespace",
        "a\nc\n",
    )


def test_a_miss_names_the_closest_lines() -> None:
    text = "import os\n\ndef area(width, height):\n    result = width + height\n    return result\n\nprint(1)\n"
    found = locate(text, "def area(width, height):\n    result = width * height\n    return result\n", "x")
    assert isinstance(found, Closest)
    assert (found.first_line, found.last_line) == (3, 5)
    assert found.similarity > 0.8


def test_nothing_alike_is_said() -> None:
    found = locate("alpha\nbeta\n", "gamma delta", "x")
    assert isinstance(found, Closest)
    assert found.similarity == 0


@given(
    lines=st.lists(st.text(alphabet="ab ():\t", max_size=8), min_size=1, max_size=12),
    data=st.data(),
)
def test_a_match_replaces_only_what_it_names(lines: list[str], data: st.DataObject) -> None:
    """Whatever rung fires, the lines outside the span stay, and the span has as many lines as `old`."""
    first = data.draw(st.integers(0, len(lines) - 1))
    last = data.draw(st.integers(first, len(lines) - 1))
    old = "\n".join(line.strip() for line in lines[first : last + 1])
    if not old:
        return
    text = "\n".join(lines)
    found = locate(text, old, "new")
    if isinstance(found, Match):
        ((start, end),) = found.spans
        called = old.strip("\n") if found.rung == "blank lines" else old
        assert text[start:end].count("\n") == called.count("\n")
        if found.rung == "exact":
            assert text[start:end] == old


@pytest.mark.parametrize("text", ["x = 1", "x = 1\n", "\nx = 1\n\n"])
def test_a_missing_final_newline_is_no_obstacle(text: str) -> None:
    assert edited(text, "x = 1\n" if text.endswith("\n") else "x = 1", "x = 2\n" if text.endswith("\n") else "x = 2")[
        1
    ] == text.replace("1", "2")


def test_a_miss_in_a_huge_file_is_found_quickly() -> None:
    lines = [f"value_{number} = compute({number})" for number in range(12_000)]
    old = "\n".join([*lines[10_000:10_060], "value = something else entirely"])
    started = time.monotonic()
    found = locate("\n".join(lines), old, "x")
    assert time.monotonic() - started < 60
    assert isinstance(found, Closest)
    assert found.first_line == 10_001


def test_tabs_in_the_file_and_spaces_in_the_call_are_the_same_depth() -> None:
    text = "all: build\n\t@echo start\n\tif true; then \\\n\t\tmake -C sub; \\\n\tfi\n"
    old = "    if true; then \\\n        make -C sub; \\\n"
    new = "    if true; then \\\n        cd sub && \\\n        make; \\\n"
    assert edited(text, old, new) == (
        "indentation",
        "all: build\n\t@echo start\n\tif true; then \\\n\t\tcd sub && \\\n\t\tmake; \\\n\tfi\n",
    )


def test_other_units_are_told_from_a_shift_by_the_steps_of_the_file() -> None:
    text = "def f():\n    if x:\n        a()\n    return 1\n"
    # Two columns for four: the new line goes one level deeper, not two columns.
    assert edited(text, "  if x:\n", "  if y:\n    b()\n")[1] == text.replace("if x:", "if y:\n        b()")
    text = "if x:\n  f()\n  if y:\n    g()\n"
    assert edited(text, "if y:  \n", "if z:\n  h()\n")[1] == text.replace("if y:", "if z:\n    h()")


def test_overlapping_copies_are_two_places() -> None:
    assert locate("x\nx\nx\n", "x\nx\n", "y\n") == Ambiguous("exact", (1, 2))


def test_what_a_changed_line_repeats_keeps_the_typography_of_the_file() -> None:
    text = "say(\u201cit\u2019s 1\u201d)\n"
    assert edited(text, 'say("it\'s 1")\n', 'say("it\'s 2")\n')[1] == "say(\u201cit\u2019s 2\u201d)\n"


def test_letters_with_separate_marks_match_and_stay() -> None:
    apart = "name = 'cafe\u0301'\nsize = 1\n"
    assert edited(apart, "name = 'caf\u00e9'\nsize = 1\n", "name = 'caf\u00e9'\nsize = 2\n")[1] == apart.replace("1", "2")
