from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcode.tui.diff import DiffLine, counts, diff_lines, draw_diff
from kcode.tui.side_by_side import draw_side_by_side, pairs
from kcode.tui.theme import DARK, look_of

LOOK = look_of({"foreground": "#ffffff", "panel": "#222222", **{key: str(value) for key, value in DARK.variables.items()}})
OLD = "".join(f"line {number}\n" for number in range(1, 21))


def test_changed_line_has_numbers_and_changed_words() -> None:
    assert diff_lines(OLD, OLD.replace("line 10\n", "line ten\n"), context=1) == [
        DiffLine(" ", 9, "line 9"),
        DiffLine("-", 10, "line 10", ((5, 7),)),
        DiffLine("+", 10, "line ten", ((5, 8),)),
        DiffLine(" ", 11, "line 11"),
    ]


def test_distant_places_are_parted() -> None:
    new = OLD.replace("line 2\n", "").replace("line 19\n", "line 19\nmore\n")
    assert [line.sign + line.text for line in diff_lines(OLD, new, context=1)] == [
        " line 1",
        "-line 2",
        " line 3",
        "…",
        " line 19",
        "+more",
        " line 20",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"), [("", "a\nb\n", (2, 0)), ("a\nb\n", "", (0, 2)), ("same\n", "same\n", (0, 0))]
)
def test_created_deleted_and_equal_files(old: str, new: str, expected: tuple[int, int]) -> None:
    assert counts(diff_lines(old, new)) == expected


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_diff_turns_the_old_lines_into_the_new(before: list[str], after: list[str]) -> None:
    lines = diff_lines("\n".join(before), "\n".join(after), context=100)
    if before != after:
        assert [line.text for line in lines if line.sign in " -"] == before
        assert [line.text for line in lines if line.sign in " +"] == after


@pytest.mark.parametrize("width", [20, 60, 200])
def test_drawn_lines_are_never_wider_than_the_screen_nor_cut(width: int) -> None:
    new = OLD.replace("line 10", "名前 = '" + "長い" * 60 + "'")
    drawn = draw_diff(diff_lines(OLD, new, context=1), "a.py", width, LOOK)
    assert max(line.cell_length for line in drawn) <= width
    assert "".join(line.text for line in drawn).count("長") == 60


def test_signs_tell_without_colour() -> None:
    drawn = draw_diff(diff_lines("a\n", "b\n"), "a.txt", 40, LOOK)
    assert [line.text.rstrip() for line in drawn] == ["1 - a", "1 + b"]


def test_a_big_rewrite_is_quick_enough_to_show() -> None:
    old = "".join(f"value_{number % 7} = {number}\n" for number in range(6000))
    new = "".join(f"value_{number % 5} = {number}\n" for number in range(6000))
    assert counts(diff_lines(old, new))[0] > 4000


@given(st.lists(st.sampled_from(["a", "b", "漢字"]), max_size=12), st.lists(st.sampled_from(["a", "b", "漢字"]), max_size=12))
def test_two_columns_are_the_old_and_the_new_file_with_their_own_numbers(before: list[str], after: list[str]) -> None:
    lines = diff_lines("\n".join(before), "\n".join(after), context=20)
    if before != after:
        left = [(row.number, row.text) for row, _ in pairs(lines) if row]
        right = [(row.number, row.text) for _, row in pairs(lines) if row]
        assert left == list(enumerate(before, 1))
        assert right == list(enumerate(after, 1))


def test_two_columns_stand_at_the_same_place_with_wide_characters() -> None:
    drawn = draw_side_by_side(diff_lines("漢字" * 30 + "\nsame", "short\nsame"), "a.txt", 60, LOOK)
    assert {strip.cell_length for strip in drawn} == {59}
    assert all(strip.crop(29, 30).text == "│" for strip in drawn)
    assert "".join(strip.crop(0, 29).text for strip in drawn).count("漢字") == 30
