"""Dataclasses from JSON: what fits is made, what does not is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from kcode.checked import checked


@dataclass(frozen=True, slots=True)
class Part:
    name: str


@dataclass(frozen=True, slots=True)
class Whole:
    word: Literal["one", "two"]
    count: int
    share: float
    parts: tuple[Part | None, ...]
    note: str | None = None


GOOD: dict[str, object] = {"word": "one", "count": 3, "share": 1, "parts": (Part("a"), None)}


def test_fields_of_the_right_types_make_it_and_unknown_ones_are_left_out() -> None:
    assert checked(Whole, {**GOOD, "of_a_later_version": 1}) == Whole("one", 3, 1, (Part("a"), None))


@pytest.mark.parametrize(
    ("field", "value"),
    [("word", "three"), ("count", "3"), ("count", True), ("share", "x"), ("parts", ("a",)), ("parts", [Part("a")]), ("note", 1)],
)
def test_a_value_of_another_type_is_an_error_that_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"Whole\.{field} cannot be"):
        checked(Whole, {**GOOD, field: value})


def test_a_missing_field_is_an_error_unless_it_has_a_default() -> None:
    with pytest.raises(ValueError, match=r"Whole\.count is missing"):
        checked(Whole, {name: value for name, value in GOOD.items() if name != "count"})
