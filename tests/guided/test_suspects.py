"""Which functions are suspected: sources loaded through the real sandbox, failing tests as a run reports them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcode.guided.suspects import (
    CALLED_SHARE,
    FRAME_DECAY,
    FRAME_WEIGHT,
    MAX_FUNCTION_LINES,
    MENTION_WEIGHT,
    find_suspects,
    words_of,
)
from kcode.repomap import load_sources
from kcode.tools.testing.calls import TestCalls
from kcode.tools.testing.report import FailingTest, Frame
from kcode_sandbox.sandbox import Sandbox
from tests.guided.conftest import Write

SHOP = '''"""A shop."""


class Cart:
    def __init__(self):
        self.lines = []

    def add(self, price, count):
        self.lines.append((price, count))

    def total(self):
        return sum(subtotal(price, count) for price, count in self.lines)


def subtotal(price, count):
    return price * rounded(count)


def rounded(value):
    return int(value)


def greeting(name):
    return f"Hello {name}"


def parse(text):
    return [float(part) for part in text.split(",")]
'''
TESTS = """from shop import Cart, greeting, parse


def make():
    cart = Cart()
    cart.add(2, 3)
    return cart


def test_total():
    assert make().total() == 6


def test_greeting():
    assert greeting("Ada") == "Hello Ada"


def test_parse():
    assert parse("1,2") == [1, 2]


def test_both():
    assert greeting(str(parse("1"))) == "Hello [1.0]"
"""
FILES = {"shop.py": SHOP, "tests/test_shop.py": TESTS}


def line_of(text: str, part: str) -> int:
    assert text.count(part) == 1, part
    return text[: text.index(part)].count("\n") + 1


def frame(part: str, path: str = "shop.py", text: str = SHOP) -> Frame:
    return Frame(path, line_of(text, part), "", part)


def failing(test: str, *frames: Frame, message: str = "AssertionError") -> FailingTest:
    start = TESTS.index(f"def {test}")
    line = TESTS[:start].count("\n") + 2
    return FailingTest(f"tests/test_shop.py::{test}", message, (Frame("tests/test_shop.py", line, test, ""), *frames))


async def suspects(
    sandbox: Sandbox, write: Write, task: str, *tests: FailingTest, files: dict[str, str] = FILES, limit: int = 20
) -> dict[str, float]:
    """Weights by qualified name, the heaviest first."""
    write(files)
    found = find_suspects(await load_sources(sandbox, words_of(task)), task, tests, limit)
    assert [suspect.weight for suspect in found] == sorted((suspect.weight for suspect in found), reverse=True)
    assert all(suspect.weight > 0 for suspect in found)
    assert not any("test" in suspect.path for suspect in found)
    return {suspect.symbol.qualified: suspect.weight for suspect in found}


async def test_function_that_broke_beats_what_the_test_names(sandbox: Sandbox, write: Write) -> None:
    found = await suspects(sandbox, write, "fix the tests", failing("test_both", frame("return [float")))
    assert list(found) == ["parse", "greeting"]
    plain = await suspects(sandbox, write, "fix the tests", failing("test_both"))
    assert found["parse"] == pytest.approx(plain["parse"] + FRAME_WEIGHT)
    assert found["greeting"] == plain["greeting"]


async def test_inner_frames_weigh_more_than_the_callers_above(sandbox: Sandbox, write: Write) -> None:
    frames = frame("return sum(subtotal"), frame("return price * rounded(count)"), frame("return int(value)")
    found = await suspects(sandbox, write, "fix the tests", failing("test_total", *frames))
    assert set(list(found)[:3]) == {"Cart.total", "subtotal", "rounded"}
    assert (found["rounded"], found["subtotal"]) == (FRAME_WEIGHT, FRAME_WEIGHT * FRAME_DECAY)
    assert "greeting" not in found


async def test_what_only_failing_tests_use_beats_what_passing_ones_use_too(sandbox: Sandbox, write: Write) -> None:
    for kept, other in (("parse", "greeting"), ("greeting", "parse")):
        # The failing test uses both functions, a passing one the other alone.
        passing = TESTS.replace(f"def test_{kept}():", f"def {kept}_unused():")
        files = {"shop.py": SHOP, "tests/test_shop.py": passing}
        found = await suspects(sandbox, write, "fix the tests", failing("test_both"), files=files)
        assert list(found) == [kept, other]
        assert found[kept] > found[other]


async def test_a_name_of_one_letter_is_a_name(sandbox: Sandbox, write: Write) -> None:
    tests = "from series import f\n\n\ndef test_both():\n    assert f(2) == [1, 2]\n"
    files = {"series.py": "def f(n):\n    return list(range(n))\n", "tests/test_series.py": tests}
    broken = FailingTest("test_both", "AssertionError", (Frame("tests/test_series.py", 5, "test_both", ""),))
    found = await suspects(sandbox, write, "fix the tests", broken, files=files)
    assert list(found) == ["f"]


async def test_what_most_failing_tests_use_beats_what_one_uses(sandbox: Sandbox, write: Write) -> None:
    found = await suspects(sandbox, write, "fix the tests", failing("test_greeting"), failing("test_both"))
    assert list(found) == ["greeting", "parse"]
    assert found["greeting"] > found["parse"]


async def test_what_a_suspect_calls_is_suspected_less(sandbox: Sandbox, write: Write) -> None:
    found = await suspects(sandbox, write, "fix the tests", failing("test_total"))
    assert found["subtotal"] == pytest.approx(CALLED_SHARE * found["Cart.total"])
    assert found["rounded"] == pytest.approx(CALLED_SHARE**2 * found["Cart.total"])


async def test_name_in_the_task_beats_frames_and_what_tests_use(sandbox: Sandbox, write: Write) -> None:
    tests = failing("test_total", frame("return int(value)")), failing("test_parse")
    for task in ("greeting says the wrong name", "Look at `greeting`!"):
        found = await suspects(sandbox, write, task, *tests)
        assert next(iter(found)) == "greeting"
        assert found["greeting"] == MENTION_WEIGHT
    qualified = await suspects(sandbox, write, "Cart.add is wrong", *tests)
    assert next(iter(qualified)) == "Cart.add"


async def test_named_file_lifts_what_is_already_suspected(sandbox: Sandbox, write: Write) -> None:
    write({**FILES, "store.py": "def greeting(name):\n    return name\n"})
    tests = [failing("test_greeting")]
    weights: list[dict[str, float]] = []
    for task in ("fix it", "the bug is in shop.py"):
        found = find_suspects(await load_sources(sandbox, words_of(task)), task, tests, 9)
        weights.append({suspect.path: suspect.weight for suspect in found})
    plain, named = weights
    assert plain["shop.py"] == plain["store.py"] == named["store.py"]
    assert named["shop.py"] == plain["shop.py"] + MENTION_WEIGHT / 2


async def test_tests_are_never_suspects(sandbox: Sandbox, write: Write) -> None:
    task = "test_total and make in tests/test_shop.py fail"
    found = await suspects(sandbox, write, task, failing("test_total", frame("cart.add(2, 3)", "tests/test_shop.py", TESTS)))
    assert next(iter(found)) == "Cart.total"
    assert not {"make", "test_total"} & set(found)


async def test_without_frames_the_message_tells(sandbox: Sandbox, write: Write) -> None:
    found = await suspects(sandbox, write, "fix it", FailingTest("shop", "TypeError: rounded() takes 1 argument"))
    assert next(iter(found)) == "rounded"


async def test_nothing_to_go_by_is_no_suspect(sandbox: Sandbox, write: Write) -> None:
    assert await suspects(sandbox, write, "make it better", FailingTest("shop", "boom")) == {}
    assert await suspects(sandbox, write, "make it better") == {}


async def test_limit_keeps_the_likeliest(sandbox: Sandbox, write: Write) -> None:
    every = await suspects(sandbox, write, "fix the tests", failing("test_total"))
    assert len(every) > 2
    assert list(await suspects(sandbox, write, "fix the tests", failing("test_total"), limit=2)) == list(every)[:2]


async def test_function_too_long_to_rewrite_is_left_out(sandbox: Sandbox, write: Write) -> None:
    body = "    value += 1\n" * MAX_FUNCTION_LINES
    files = {**FILES, "shop.py": SHOP + f"\n\ndef rounded_up(value):\n{body}    return value\n"}
    assert "rounded_up" not in await suspects(sandbox, write, "rounded_up and rounded are wrong", files=files)


async def test_innermost_function_around_the_line_is_meant(sandbox: Sandbox, write: Write) -> None:
    nested = "def outer(x):\n    def inner(y):\n        return y / 0\n\n    return inner(x)\n"
    test = FailingTest("t", "ZeroDivisionError", (Frame("nested.py", 5, "outer", ""), Frame("nested.py", 3, "inner", "")))
    found = await suspects(sandbox, write, "fix it", test, files={"nested.py": nested, "empty.py": "", "broken.py": "def ("})
    assert list(found) == ["outer.inner", "outer"]


SLUG = """const strip = (text) => text.trim();

function slugify(text) {
  return strip(text).toLowerCase();
}

class Titles {
  shout(text) {
    return text.toUpperCase();
  }
}

module.exports = { slugify, strip, Titles };
"""
SLUG_TEST = """const test = require('node:test');
const assert = require('node:assert');
const { slugify, Titles } = require('../src/slug');

test('makes a slug', () => {
  assert.strictEqual(slugify(' A b '), 'a-b');
});

test('shouts', () => {
  assert.strictEqual(new Titles().shout('a'), 'A');
});
"""


async def test_javascript_is_suspected_by_what_its_tests_name_and_by_frames(sandbox: Sandbox, write: Write) -> None:
    files = {"src/slug.js": SLUG, "test/slug.test.js": SLUG_TEST}
    slug = FailingTest("makes a slug", "'a b' !== 'a-b'", (Frame("test/slug.test.js", 6, "", ""),))
    found = await suspects(sandbox, write, "fix it", slug, files=files)
    assert list(found)[:2] == ["slugify", "strip"]
    broke = Frame("src/slug.js", 9, "Titles.shout", "")
    shout = FailingTest("shouts", "TypeError", (Frame("test/slug.test.js", 10, "", ""), broke))
    assert next(iter(await suspects(sandbox, write, "fix it", shout, files=files))) == "Titles.shout"


async def test_code_of_a_suspect_is_its_definition_without_indentation(sandbox: Sandbox, workspace: Path) -> None:
    text = "class A:\n    @property\n    def size(self):\n        return 'é'\n\n    def other(self): return 1\n"
    (workspace / "a.py").write_text(text)
    found = find_suspects(await load_sources(sandbox, set()), "A.size and A.other", (), 5)
    codes = {suspect.label: suspect.code for suspect in found}
    assert codes == {
        "A.size in a.py": "@property\ndef size(self):\n    return 'é'",
        "A.other in a.py": "def other(self): return 1",
    }


def calls(test: str, *parts: str, failed: bool = False) -> TestCalls:
    """A test that called the functions whose first lines these are."""
    return TestCalls(f"tests/test_shop.py::{test}", failed, frozenset(("shop.py", line_of(SHOP, part)) for part in parts))


async def test_only_what_the_failing_tests_called_is_suspected(sandbox: Sandbox, write: Write) -> None:
    write(FILES)
    files = await load_sources(sandbox, set())
    tests = [failing("test_both")]
    called = [
        calls("test_both", "def greeting", "def rounded", "def subtotal", failed=True),
        calls("test_greeting", "def greeting", "def subtotal"),
        calls("test_total", "def subtotal"),
        calls("test_parse", "def parse"),
    ]
    found = find_suspects(files, "fix it", tests, 9, called)
    names = [suspect.symbol.qualified for suspect in found]
    assert names == ["rounded", "greeting", "subtotal"]
    # Never called by a failing test, but the person names it.
    assert "parse" in {suspect.symbol.qualified for suspect in find_suspects(files, "parse is broken", tests, 9, called)}
    # Calls of tests that nobody asked about say nothing: what the tests name does.
    other = [calls("test_parse", "def rounded", failed=True)]
    assert find_suspects(files, "fix it", tests, 9, other) == find_suspects(files, "fix it", tests, 9)


async def test_property_and_its_setter_are_two(sandbox: Sandbox, write: Write) -> None:
    """They share a name; each is suspected by its own lines and once."""
    text = (
        "class Box:\n    @property\n    def size(self):\n        return self._size\n\n"
        "    @size.setter\n    def size(self, value):\n        self._size = value + 1\n"
    )
    write({"box.py": text, "tests/test_box.py": "from box import Box\n\n\ndef test_size():\n    Box().size = 2\n"})
    test = FailingTest("tests/test_box.py::test_size", "", (Frame("tests/test_box.py", 5, "test_size", ""),))
    files = await load_sources(sandbox, set())
    both = find_suspects(files, "fix it", [test], 9)
    assert [suspect.symbol.start_line for suspect in both] == [2, 6]
    called = [TestCalls(test.id, True, frozenset({("box.py", 6)}))]
    assert [suspect.symbol.start_line for suspect in find_suspects(files, "fix it", [test], 9, called)] == [6]
