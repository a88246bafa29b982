"""What a message is taken for by its words alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcode.guided.talk import says_what_is_wrong, tells_of_failure, tells_of_mistake
from kcode.models.local import LocalModel
from kcode.opening import engine_options
from kcode.paths import find_paths
from kcode.settings import Settings
from tests.core.conftest import collect, ending
from tests.guided.conftest import Begin, Write


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
        "bump_major keeps the minor version, it should be reset to zero",
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


def test_a_polite_request_is_no_question() -> None:
    assert tells_of_failure("tests/test_a.py fails, can you fix that?")
    assert tells_of_failure("test_total fails")
    assert not tells_of_failure("why does test_total fail?")
    assert says_what_is_wrong("f(2) returns 3, but it should return 4. Could you please fix it?")
    assert not says_what_is_wrong("f(2) returns 3, but it should return 4. Why?")


NUMBERS = """def parse_number(text):
    sign = 1
    if text.startswith("-"):
        sign = 1
        text = text[1:]
    return sign * int(text)
"""
TESTS = """from numbers_in_text import parse_number


def test_parse_number():
    assert parse_number("12") == 12
    assert parse_number("-12") == -12
"""


@pytest.mark.model
async def test_a_bug_told_without_such_a_word_is_repaired_by_what_the_tests_say(
    real_model: Path, begin: Begin, workspace: Path, write: Write, tmp_path: Path
) -> None:
    write({"numbers_in_text.py": NUMBERS, "test_numbers.py": TESTS})
    paths = find_paths({"KCODE_HOME": str(tmp_path / "engine")})
    model = LocalModel(engine_options(real_model, Settings(kv_disk_gb=0), paths), paths.runtime, paths.logs)
    session = await begin(model)
    events = await collect(session, "negative numbers are parsed as positive ones")
    assert ending(events).reason == "the tests pass"
    assert (workspace / "numbers_in_text.py").read_text() == NUMBERS.replace(
        '"-"):\n        sign = 1', '"-"):\n        sign = -1'
    )
