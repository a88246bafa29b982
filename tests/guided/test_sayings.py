"""What messages say of calls, as people write it."""

from __future__ import annotations

import time

import pytest

from kcode.guided.sayings import sayings


@pytest.mark.parametrize(
    ("text", "call", "got", "wanted"),
    [
        ("take(2, [1, 2]) returns (2,), but it should return [1, 2].", "take(2, [1, 2])", "(2,)", "[1, 2]"),
        ("ordinal(12) returns 12nd, but it should return 12th like the others", "ordinal(12)", "12nd", "12th"),
        ("slugify('a b', separator='_') gives a-b; expected a_b", "slugify('a b', separator='_')", "a-b", "a_b"),
        ("camelize('a_b', False) gives 'AB' instead of 'aB'. Fix it.", "camelize('a_b', False)", "'AB'", "'aB'"),
        ("`total([])` raises KeyError where an empty list is expected", "total([])", "KeyError", "[]"),
        ("`total([])` raises KeyError but should return an empty list.", "total([])", "KeyError", "[]"),
        ("size(3000) gives 3.0 KB but should give 3.0 kB", "size(3000)", "3.0 KB", "3.0 kB"),
        ("parse('2020').year should be 2020, but it is 2021. Look.", "parse('2020').year", "2021", "2020"),
        ("V.parse('3.4.5').bump() should return 4.0.0 instead of 4.4.0", "V.parse('3.4.5').bump()", "4.4.0", "4.0.0"),
        ("I expected f(2) to return 4, but got 5", "f(2)", "5", "4"),
        ("when I call f(2) it returns 5, not 4", "f(2)", "5", "4"),
        (">>> add(2,3)\n-1\nshould be 5", "add(2,3)", "-1", "5"),
        (">>> name(12)\n'12nd'\nExpected: '12th'\n", "name(12)", "'12nd'", "'12th'"),
        ("width('\\u200d') is 4, it should be 2", "width('\\u200d')", "4", "2"),
        ("f([1, 2])[0] currently gives me None; it should be 1, see the docs", "f([1, 2])[0]", "None", "1"),
    ],
)
def test_a_call_with_what_it_gives_and_should_give_is_read(text: str, call: str, got: str, wanted: str) -> None:
    (saying,) = sayings(text)
    assert (saying.call, saying.got.literal or saying.got.text, saying.wanted.literal or saying.wanted.text) == (
        call,
        got,
        wanted,
    )


@pytest.mark.parametrize(
    "text",
    [
        "f(x) should be quick",
        "f(2) returns 5",
        "f(2) returns 5 but it should return the double",
        "Add a function mean(xs) that returns 0 instead of raising for an empty list",
        "f(2 returns 5, but it should return 4",
        "f(2) returns 4, and it should return 4",
        "the result should be 4 but is 5",
        "",
    ],
)
def test_what_says_no_such_thing_is_left_alone(text: str) -> None:
    assert sayings(text) == ()


def test_each_of_several_is_read_by_itself() -> None:
    found = sayings("f(1) returns 2, but should return 3.\nf(2) returns 3, but should return 4.")
    assert [(saying.call, saying.wanted.literal) for saying in found] == [("f(1)", "3"), ("f(2)", "4")]


def test_a_long_message_takes_no_time() -> None:
    began = time.process_time()
    assert sayings("f(" * 5000 + "f(1) returns " + "x " * 5000) == ()
    assert time.process_time() - began < 2
