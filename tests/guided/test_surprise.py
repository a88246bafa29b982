"""Edits found by surprise, with a model that knows how the file should read."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcode.errors import ModelError
from kcode.guided.drive import as_repair
from kcode.guided.surprise import CONTEXT_STEP, CONTEXT_STEPS, MAX_RESCORED, Proposal, body_start, propose, squeezed
from kcode.model import Alternative, Continuation, ScoredText, TextModel, Usage
from kcode.tools.functions import rewritten
from tests.fakes.text_model import ReadingModel
from tests.guided.conftest import suspect

RIGHT = '''"""Sums of numbers."""


def total(items, start=0):
    """The sum of the items and the start."""
    result = start
    for item in items:
        if item is None:
            continue
        result += item.value * item.count
    return result


def other(x):
    return total([x]) - 1
'''


def wrong(old: str, new: str, right: str = RIGHT) -> str:
    assert right.count(old) == 1
    return right.replace(old, new)


async def proposals(text: str, right: str = RIGHT, name: str = "total", path: str = "sums.py") -> list[Proposal]:
    return await propose(ReadingModel(right), suspect(path, text, name), lambda usage: None)


async def best(text: str, right: str = RIGHT, name: str = "total", path: str = "sums.py") -> Proposal:
    """The first proposal; all must keep what every proposal has to keep."""
    found = await proposals(text, right, name, path)
    assert found, "nothing was proposed"
    assert [proposal.gain for proposal in found] == sorted((proposal.gain for proposal in found), reverse=True)
    for proposal in found:
        assert squeezed(proposal.text) != squeezed(text)
        if path.endswith(".py"):
            ast.parse(proposal.text)
    assert found[0].gain > 0
    return found[0]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("result = start", "result = 1", 5),
        ("item.value * item.count", "item.value + item.count", 9),
        ("item is None", "item is not None", 7),
        ("return result", "return start", 10),
        ("for item in items:", "for item in items[1:]:", 6),
        ("            continue", "            break", 8),
        ("        result += item.value * item.count\n", "        result = item.count\n", 9),
    ],
)
async def test_replaced_line_is_found(old: str, new: str, line: int) -> None:
    found = await best(wrong(old, new))
    assert (found.text, found.line) == (RIGHT, line)


@pytest.mark.parametrize(
    "line",
    ["    result = start\n", "        result += item.value * item.count\n", "        if item is None:\n            continue\n"],
)
async def test_missing_line_is_put_in(line: str) -> None:
    text = wrong(line, "")
    if line.count("\n") == 1:
        # The end of the function is not read: with the line in place of the next one the text is as likely.
        assert RIGHT in [proposal.text for proposal in await proposals(text)][:2]
    else:
        # One edit puts one line in: two lines that need each other are beyond it, and nothing unparsable is proposed.
        assert RIGHT not in [proposal.text for proposal in await proposals(text)]


@pytest.mark.parametrize(
    ("after", "extra"),
    [
        ("    result = start\n", "    items = items[1:]\n"),
        ("            continue\n", "        result = 0\n"),
        ("    for item in items:\n", "        print(item)\n"),
    ],
)
async def test_extra_line_is_left_out(after: str, extra: str) -> None:
    assert (await best(wrong(after, after + extra))).text == RIGHT


@pytest.mark.parametrize("before", ["", "def unrelated(x):\n    return x\n\n\n" * 300], ids=["short file", "long file"])
async def test_single_token_is_changed_where_the_rest_of_the_line_is_right(before: str) -> None:
    """The model would finish the line as it knows it, which is not how this file has it."""
    right = before + wrong("item.value * item.count", "item.value * item.weight")
    text = wrong("result += item", "result -= item", right)
    found = {proposal.text: proposal.line for proposal in await proposals(text)}
    assert found[right] == right[: right.index("result += item")].count("\n")


async def test_right_function_gets_no_proposal() -> None:
    assert await proposals(RIGHT) == []


async def test_signature_docstring_and_neighbours_are_not_touched() -> None:
    text = RIGHT.replace("start=0", "start=9").replace("The sum of", "The product of").replace("total([x]) - 1", "total([x]) - 2")
    assert await proposals(text) == []


LETTERS = """# Größen: ½ 🙂 日本語
NAMES = {'größe': '🙂'}


def größe(x):
    if x == '日本語':
        return '🙂'
    return x + len('né')
"""


@pytest.mark.parametrize(("old", "new"), [("x + len", "x - len"), ("x == '日", "x != '日"), ("'né'", "'nx'"), ("'né'", "'né🙂'")])
async def test_offsets_hold_in_any_alphabet(old: str, new: str) -> None:
    assert (await best(wrong(old, new, LETTERS), LETTERS, "größe")).text == LETTERS


@pytest.mark.parametrize(("old", "new"), [("return '🙂'", "return '🙁'"), ("x == '日本語'", "x == '日木語'")])
async def test_character_of_several_tokens_is_never_torn(old: str, new: str) -> None:
    """The model's choice is then a part of a character, which is no edit."""
    found = await proposals(wrong(old, new, LETTERS), LETTERS, "größe")
    assert all("\ufffd" not in proposal.text for proposal in found)


class Babbler(ReadingModel):
    """Would rather write `s` wherever a token begins with a byte of `where`, and half a character after that."""

    def __init__(self, where: range) -> None:
        super().__init__(LETTERS)
        self._where = where

    async def score(self, text: str, start: int, alternatives: int) -> ScoredText:
        scored = await super().score(text, start, alternatives)
        data = text.encode()
        tokens = [
            replace(token, alternatives=(Alternative("s", 0.0),)) if data[token.start] in self._where else token
            for token in scored.tokens
        ]
        return replace(scored, tokens=tuple(tokens))

    async def continue_text(self, text: str, stop: str, max_tokens: int, draft: str = "") -> Continuation:
        self.continued.append(text)
        return Continuation("\ufffd'", Usage())


@pytest.mark.parametrize("where", [range(0x80, 0xC0), range(0xC0, 0x100)], ids=["inside a character", "at its first byte"])
async def test_choices_within_a_character_are_left_alone(where: range) -> None:
    text = LETTERS.replace("    if", "    # 🙂🙂\n    if")
    for proposal in await propose(Babbler(where), suspect("sizes.py", text, "größe"), lambda usage: None):
        ast.parse(proposal.text)
        assert "\ufffd" not in proposal.text


async def test_repair_of_a_file_with_crlf_keeps_its_line_ends() -> None:
    right = RIGHT.replace("\n", "\r\n")
    text = wrong("result = start", "result = 1", right)
    found = await best(text, right)
    assert squeezed(found.text) == squeezed(right)
    repair = as_repair(found, set())
    # The tool works on LF and puts the file's own line ends back.
    plain = text.replace("\r\n", "\n")
    for start, end, new in reversed(rewritten("sums.py", plain, "total", repair.code).spans):
        plain = plain[:start] + new + plain[end:]
    assert plain == RIGHT


async def test_function_at_the_end_without_a_newline() -> None:
    right = RIGHT.rstrip("\n")
    found = await best(wrong("total([x]) - 1", "total([x]) + 1", right), right, "other")
    assert found.text == right
    assert as_repair(found, set()).code == "def other(x):\n    return total([x]) - 1"


METHODS = '''class Box:
    size = 3

    def grow(self, by):
        """Make it larger."""

        def step(amount):
            return amount * 2

        if by < 0:
            raise ValueError(by)
        self.size += step(by)
        return self.size

    def shrink(self, by): return self.grow(-by)
'''


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("Box.grow", "by < 0", "by > 0"),
        ("Box.grow", "self.size += step(by)", "self.size -= step(by)"),
        ("Box.grow.step", "amount * 2", "amount * 3"),
        ("Box.shrink", "grow(-by)", "grow(+by)"),
    ],
)
async def test_methods_and_nested_functions_stay_where_they_are(name: str, old: str, new: str) -> None:
    text = wrong(old, new, METHODS)
    found = await best(text, METHODS, name)
    assert found.text == METHODS
    for start, end, code in reversed(rewritten("box.py", text, name, as_repair(found, set()).code).spans):
        text = text[:start] + code + text[end:]
    assert text == METHODS


async def test_repair_says_which_line_looks_wrong() -> None:
    repair = as_repair(await best(wrong("result = start", "result = 1")), set())
    assert repair.why == "Line 6 of sums.py looks wrong: `result = 1`."
    assert repair.code.startswith("def total(items, start=0):\n")
    assert repair.code.endswith("    return result")


async def test_javascript_is_read_too() -> None:
    right = "const last = (items) => {\n  if (!items.length) {\n    return null;\n  }\n  return items[items.length - 1];\n};\n"
    assert (await best(wrong("length - 1", "length - 2", right), right, "last", "last.js")).text == right
    assert (await best(wrong("!items", "items", right), right, "last", "last.js")).text == right


async def test_only_a_window_of_a_long_file_is_read() -> None:
    filler = "".join(f"def f{n}(x):\n    return x + {n}  # é\n\n\n" for n in range(400))
    right = filler + RIGHT + filler.replace("def f", "def g")
    text = wrong("result = start", "result = 1", right)
    model = ReadingModel(RIGHT)
    found = await propose(model, suspect("sums.py", text, "total"), lambda usage: None)
    assert found[0].text == right
    assert found[0].line == text[: text.index("result = 1")].count("\n")
    window = model.read[0][0]
    assert len(window.encode()) < (CONTEXT_STEPS + 1) * CONTEXT_STEP + len(RIGHT.encode()) + 10
    assert window.startswith(("def f", "    return", "\n"))
    assert window.endswith("    return result\n")
    assert as_repair(found[0], set()).code.startswith("def total(")


async def test_a_name_that_nothing_defines_is_not_proposed() -> None:
    """The model may like a name that this file does not know; the tests need not be run to know that."""
    text = wrong("item.value * item.count", "item.value + item.count")
    liked = RIGHT.replace("item.value * item.count", "item.value + tax_of(item)")
    model = ReadingModel(liked, RIGHT)
    found = await propose(model, suspect("sums.py", text, "total"), lambda usage: None)
    assert not any("tax_of" in proposal.text for proposal in found)
    known = "from taxes import tax_of\n\n\n" + text
    model = ReadingModel("from taxes import tax_of\n\n\n" + liked)
    found = await propose(model, suspect("sums.py", known, "total"), lambda usage: None)
    assert "tax_of(item)" in found[0].text


async def test_every_request_is_paid_for() -> None:
    model = ReadingModel(RIGHT)
    spent: list[Usage] = []
    await propose(model, suspect("sums.py", wrong("result = start", "result = 1"), "total"), spent.append)
    assert len(spent) == len(model.read) + len(model.continued)
    assert 2 <= len(model.read) <= 1 + MAX_RESCORED
    assert isinstance(model, TextModel)


async def test_what_the_model_refuses_is_passed_on() -> None:
    with pytest.raises(ModelError, match="no such thing"):
        await propose(ReadingModel(broken=ModelError("no such thing")), suspect("sums.py", RIGHT, "total"), lambda usage: None)


@pytest.mark.parametrize(
    ("text", "name", "first"),
    [
        (RIGHT, "total", "    result = start"),
        (METHODS, "Box.grow.step", "            return amount * 2"),
        (METHODS, "Box.shrink", "def shrink(self, by): return self.grow(-by)"),
        ("def f():\n    '''One.\n\n    Two.'''\n    return 1\n", "f", "    return 1"),
        ('def f():\n    r"""One."""\n    return 1\n', "f", "    return 1"),
        ('def f():\n    """Only this."""', "f", '    """Only this."""'),
        ("@cache\ndef f():\n    return 1\n", "f", "    return 1"),
    ],
)
def test_statements_begin_after_signature_and_docstring(text: str, name: str, first: str) -> None:
    data = text.encode()[body_start(suspect("a.py", text, name)) :]
    assert data.decode().split("\n")[0] == first


PIECES = (
    "items",
    "item",
    "result",
    "start",
    "None",
    "0",
    "1",
    "+",
    "-",
    "*",
    "==",
    "(",
    ")",
    ":",
    "\n",
    "    ",
    "é",
    "🙂",
    "return ",
    "",
)


@settings(max_examples=25, deadline=None)
@given(at=st.integers(0, 1000), length=st.integers(0, 6), piece=st.sampled_from(PIECES))
async def test_whatever_is_proposed_parses_and_differs(at: int, length: int, piece: str) -> None:
    """One spot of the body damaged in any way; also when the function does not parse any more."""
    head = RIGHT.index("    result = start")
    end = RIGHT.index("\n\n\ndef other")
    at = head + at % (end - head)
    text = RIGHT[:at] + piece + RIGHT[min(at + length, end) :]
    try:
        ast.parse(text)
        chosen = suspect("sums.py", text, "total")
    except (SyntaxError, ValueError):
        return
    for proposal in await propose(ReadingModel(RIGHT), chosen, lambda usage: None):
        ast.parse(proposal.text)
        assert squeezed(proposal.text) != squeezed(text)
        repair = as_repair(proposal, set())
        assert rewritten("sums.py", text, "total", repair.code).spans
