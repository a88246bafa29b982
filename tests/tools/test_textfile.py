"""Bytes on disk survive an edit elsewhere in the file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcode.tools.refusal import Refusal
from kcode.tools.textfile import decode


@given(st.binary().filter(lambda data: b"\0" not in data))
def test_decoding_and_encoding_gives_the_same_bytes(data: bytes) -> None:
    assert decode(data, "x").encode() == data


def test_new_lines_end_like_most_of_the_file() -> None:
    file = decode(b"a\r\nb\nc\r\n", "x")
    assert file.replaced([(2, 3, "B\nB2")]).encode() == b"a\r\nB\r\nB2\nc\r\n"
    assert decode(b"a\nb\n", "x").replaced([(0, 1, "1\r\n2")]).encode() == b"1\n2\nb\n"


@given(
    st.lists(st.sampled_from([b"a", b"b\r\n", b"c\n", b"\r\n", b"\n", b"dd\r"]), max_size=12).map(b"".join),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_what_lies_outside_a_replaced_span_keeps_its_bytes(data: bytes, one: int, other: int) -> None:
    file = decode(data, "x")
    start, end = sorted((min(one, len(file.text)), min(other, len(file.text))))
    result = file.replaced([(start, end, "NEW")]).encode()
    before, _, after = result.partition(b"NEW")
    assert before == file.replaced([(start, len(file.text), "")]).encode()
    assert after == file.replaced([(0, end, "")]).encode()
    assert data.startswith(before)
    assert data.endswith(after)


def test_bom_and_latin_1_are_kept() -> None:
    assert decode(b"\xef\xbb\xbfa\n", "x").replaced([(0, 1, "\u00e9")]).encode() == b"\xef\xbb\xbf\xc3\xa9\n"
    assert decode(b"caf\xe9\n", "x").replaced([(0, 1, "k")]).encode() == b"kaf\xe9\n"


def test_a_character_that_latin_1_lacks_is_refused() -> None:
    with pytest.raises(Refusal, match="latin-1"):
        decode(b"caf\xe9\n", "x").replaced([(0, 1, "\u20ac")])


def test_binary_data_is_refused() -> None:
    with pytest.raises(Refusal, match="binary"):
        decode(b"\x7fELF\0\0", "a.out")
