"""What a message is taken for by its words alone."""

from __future__ import annotations

import pytest

from kcode.guided.talk import tells_of_mistake


@pytest.mark.parametrize(
    "text",
    [
        "fix the total",
        "the total is wrong",
        "test_total fails",
        "take_nth(2, range(5)) returns [0], but it should return [0, 2, 4]",
        "total() gives 3 instead of 4",
        "Expected 4 but got 3",
        "the parser raises KeyError where an empty list is expected",
        "dates are rounded incorrectly",
    ],
)
def test_what_is_and_what_should_be_is_a_mistake(text: str) -> None:
    assert tells_of_mistake(text)


@pytest.mark.parametrize(
    "text",
    [
        "add a function that returns the mean; it should take any iterable",
        "Please write a helper which gives the median rather than the mean",
        "Rename is_ok to ok; the name should be short",
        "parse returns a string; I want a list",
        "the default should be 3",
        "use a set there instead of a list",
        "what does total return?",
    ],
)
def test_a_wish_is_none(text: str) -> None:
    assert not tells_of_mistake(text)
