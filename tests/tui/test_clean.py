from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcode.tui.clean import clean, one_line


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain\ntext", "plain\ntext"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]52;c;aGVsbG8=\x1b\\after", "after"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0;2\x1b\\after", "after"),
        ("\x1b[2J\x1b[Hhome", "home"),
        ("\x9b31mred", "red"),
        ("\x1b]0;cut off at the end", ""),
        ("a\r\nb", "a\nb"),
        ("10%\r50%\r100%\ndone", "100%\ndone"),
        ("abc\b\bX", "aX"),
        ("a\tb", "a   b"),
        ("rm \u202e fr-", "rm <U+202E> fr-"),
        ("a\u200bb", "a<U+200B>b"),
        ("bell\x07 null\x00", "bell null"),
        ("日本語 🎉", "日本語 🎉"),
    ],
)
def test_shown_text(raw: str, shown: str) -> None:
    assert clean(raw) == shown


@given(st.text(alphabet=st.sampled_from("ab\x1b[]0;m\x07\\\x9b\x9dPX\r\n\t\b\x00\u202e?"), max_size=40))
def test_nothing_that_a_terminal_acts_on_is_left(raw: str) -> None:
    assert all(character == "\n" or unicodedata.category(character) not in {"Cc", "Cf"} for character in clean(raw))


def test_one_line_has_one_line() -> None:
    assert one_line("  a\n\tb \x1b[1m c ") == "a b c"
