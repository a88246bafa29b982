from __future__ import annotations

import pytest

from kcode.events import DiffDisplay, PlainDisplay, TestsDisplay
from kcode.tui.blocks import Answer, Block, Remark, Said, Thinking
from kcode.tui.call_block import LIVE_CHARS, Call
from kcode.tui.lines import Page
from kcode.tui.theme import DARK, Look, look_of

LOOK = look_of({"foreground": "#ffffff", "panel": "#222222", **{key: str(value) for key, value in DARK.variables.items()}})
MARKDOWN = """# Title

Some **bold** text with `code` and a <b>tag</b>.

1. one
2. two

   still two

```python
def f():

    return 1
```

| a | b |
|---|---|
| 1 | 2 |

Last line.
"""


def text_of(block: Block, width: int = 80, look: Look = LOOK) -> list[str]:
    return [line.text.rstrip() for line in block.draw(width, look)]


def test_answer_streamed_in_any_pieces_is_drawn_like_the_whole() -> None:
    whole = text_of(Answer(MARKDOWN))
    for size in (1, 3, 17, 200):
        answer = Answer()
        for start in range(0, len(MARKDOWN), size):
            answer.append(MARKDOWN[start : start + size])
            answer.draw(80, LOOK)
        assert text_of(answer) == whole


def test_answer_shows_html_as_it_was_written() -> None:
    assert any("<b>tag</b>" in line for line in text_of(Answer(MARKDOWN)))


def test_answer_draws_finished_parts_once() -> None:
    answer = Answer()
    for number in range(200):
        answer.append(f"Paragraph {number} has some words.\n\n")
        lines = answer.draw(80, LOOK)
    again = answer.draw(80, LOOK)
    assert len(again) == 399
    assert again[0]._segments[1] is lines[0]._segments[1]


@pytest.mark.parametrize("width", [10, 60, 200])
@pytest.mark.parametrize(
    "block",
    [
        Said("日本語のとても長い文章です。" * 8),
        Remark("i", "a notice " * 30, "dim"),
        Answer(MARKDOWN + "word" * 100 + " 🎉" * 60),
    ],
    ids=["said", "remark", "answer"],
)
def test_no_line_is_wider_than_the_screen(block: Block, width: int) -> None:
    assert max(line.cell_length for line in block.draw(width, LOOK)) <= width


def test_thinking_folds_when_it_is_over() -> None:
    thinking = Thinking()
    thinking.append("first line\n" * 10 + "last line")
    assert len(text_of(thinking)) == 5
    thinking.finish(12.4)
    assert text_of(thinking) == [" ✻ Thought for 12 s  ▸ 22 words"]
    thinking.toggle()
    assert len(text_of(thinking)) == 12


def test_call_is_one_line_with_sign_summary_size_and_duration() -> None:
    call = Call("read")
    call.start("read src/a.py:1-40")
    call.finish(PlainDisplay("x\n" * 40), False, 0.05)
    assert text_of(call) == [" ✓ read src/a.py:1-40  ▸ 40 lines · 0.1 s"]
    assert call.compact
    call.toggle()
    assert len(text_of(call)) == 41


def test_call_shows_the_tail_of_live_output_and_keeps_little() -> None:
    call = Call("bash")
    call.start("bash make")
    for number in range(20_000):
        call.output(f"line {number}\r\n")
    assert text_of(call) == [" ● bash make  ▸ running", *(f"   │ line {number}" for number in range(19_995, 20_000))]
    assert len(call._live) <= LIVE_CHARS


def test_escape_sequences_cut_between_pieces_of_output_do_not_show() -> None:
    call = Call("bash")
    call.start("bash x")
    for piece in ("\x1b[3", "1mred\x1b", "[0m \x1b]0;ti", "tle\x07end"):
        call.output(piece)
        assert "\x1b" not in "".join(text_of(call))
    assert text_of(call)[-1] == "   │ red end"


def test_failed_call_shows_the_end_of_its_output() -> None:
    call = Call("bash")
    call.start("bash pytest")
    call.finish(PlainDisplay("\n".join(f"line {number}" for number in range(50))), True, 65)
    assert text_of(call)[0] == " ✗ bash pytest  ▸ 50 lines · 1:05 min"
    assert text_of(call)[1:] == [f"   │ line {number}" for number in range(42, 50)]


def test_edit_shows_its_diff() -> None:
    call = Call("str_replace")
    call.start("str_replace a.py")
    call.finish(DiffDisplay("a.py", "x = 1\n", "x = 2\n"), False, 0.2)
    assert text_of(call) == [" ✓ str_replace a.py  ▸ +1 -1 · 0.2 s", "   │ 1 - x = 1", "   │ 1 + x = 2"]


def test_tests_show_counts_and_failures() -> None:
    call = Call("run_tests")
    call.start("run_tests pytest")
    call.finish(TestsDisplay("pytest", 12, 1, "FAILED test_a\nE  assert 1 == 2"), True, 3)
    assert text_of(call) == [
        " ✗ run_tests pytest  ▸ ✓ 12 passed · ✗ 1 failed · 3.0 s",
        "   │ FAILED test_a",
        "   │ E  assert 1 == 2",
    ]


def test_call_being_written_names_its_path() -> None:
    call = Call("")
    call.write("read", '{"path": "src/a')
    call.write("", ".py")
    assert text_of(call) == [" ✎ read src/a.py  writing, 18 characters"]
    call.stop()
    assert text_of(call) == [" ◌ read src/a.py  not run"]


def page_of(*blocks: Block) -> Page:
    page = Page()
    for block in blocks:
        page.add(block)
    assert page.settle(80, LOOK, 10.0, range(20))
    return page


def shown(page: Page) -> list[str]:
    return [line.text.rstrip() if (line := page.line(y)) else "" for y in range(page.height)]


def read_call(number: int) -> Call:
    call = Call("read")
    call.start(f"read {number}.py")
    call.finish(PlainDisplay("x\n"), False, 0.1)
    return call


def test_page_keeps_calls_together_and_the_rest_apart() -> None:
    assert shown(page_of(Said("go"), read_call(1), read_call(2), Remark("✓", "done", "good"))) == [
        " ❯ go",
        "",
        " ✓ read 1.py  ▸ 1 line · 0.1 s",
        " ✓ read 2.py  ▸ 1 line · 0.1 s",
        "",
        " ✓ done",
    ]


def test_page_moves_what_is_below_a_block_that_grows() -> None:
    call = read_call(1)
    page = page_of(call, Remark("✓", "done", "good"))
    call.toggle()
    page.touch(call)
    page.settle(80, LOOK, 10.0, range(20))
    assert shown(page) == [" ✓ read 1.py  ▾ 1 line · 0.1 s", "   │ x", "", " ✓ done"]
    assert [page.block_at(y) for y in range(4)] == [0, 0, 0, 1]


def test_page_draws_visible_blocks_first_and_the_rest_in_slices() -> None:
    page = page_of(*(Answer(MARKDOWN) for _ in range(30)))
    before = page.height
    page.touch_all()
    assert not page.settle(40, LOOK, 0.0, range(20))
    visible = page.line(2)
    assert visible is not None
    assert visible.cell_length <= 40
    while not page.settle(40, LOOK, 0.01, range(20)):
        pass
    assert page.height > before
