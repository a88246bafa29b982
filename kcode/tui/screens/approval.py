"""The question before a call that changes something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import Input, Static

from kcode.approval import Answer, Question, Reply
from kcode.tui.clean import clean, one_line
from kcode.tui.preview import draw_call, has_two_sides
from kcode.tui.side_by_side import MIN_WIDTH
from kcode.tui.theme import Look, look_of
from kcode.tui.widgets.sheet import Sheet

DENY = "Deny, and say why"
CHOICES: Sequence[tuple[str, Answer]] = (
    ("Allow once", "allow"),
    ("Allow {name} for this session", "allow-always"),
    (DENY, "deny"),
)
GRANT_CHOICES: Sequence[tuple[str, Answer]] = (
    ("Allow until this turn ends", "allow"),
    ("Allow for this session", "allow-session"),
    ("Allow always in this folder", "allow-always"),
    (DENY, "deny"),
)


class ApprovalScreen(ModalScreen[Reply]):
    """Ends with a Reply. Escape denies; nothing but a choice that says so allows."""

    DEFAULT_CSS = """
    ApprovalScreen {
        align: center bottom;
        background: $background 40%;
        & > Vertical {
            height: auto;
            max-height: 100%;
            background: $surface;
            border-top: solid $warning;
            padding: 0 2 1 2;
        }
        & #approval-head { height: auto; margin-bottom: 1; }
        & Sheet { height: auto; max-height: 35vh; background: $surface; }
        & #approval-choices { height: auto; margin-top: 1; }
        & Input { display: none; height: 1; border: none; padding: 0; margin-top: 1; background: $panel; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "choose(0)", show=False),
        Binding("2", "choose(1)", show=False),
        Binding("3", "choose(2)", show=False),
        Binding("4", "choose(3)", show=False),
        Binding("up", "move(-1)", show=False),
        Binding("down,tab", "move(1)", show=False),
        Binding("enter", "choose_marked", show=False),
        Binding("escape,ctrl+c", "deny", show=False, priority=True),
        Binding("v", "turn_columns", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
    ]

    def __init__(self, question: Question) -> None:
        super().__init__()
        self._question = question
        self._choices = GRANT_CHOICES if question.is_grant else CHOICES
        self._marked = 0
        self._two_columns: bool | None = None

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(id="approval-head")
            yield Sheet(self._draw)
            yield Static(id="approval-choices")
            yield Input(placeholder="What should it do instead? Enter denies", compact=True)

    def on_mount(self) -> None:
        look = look_of(self.app.theme_variables)
        head = Text.assemble(
            ("? Open the sandbox for " if self._question.is_grant else "? Allow ", look.warning),
            (one_line(self._question.summary), look.bold),
        )
        head.append(f"\n  {clean(self._question.reason)}" if self._question.reason else "", look.dim)
        self.query_one("#approval-head", Static).update(head)
        self.query_one(Sheet).can_focus = False
        self._mark(0)

    def action_choose(self, number: int) -> None:
        if number >= len(self._choices):
            return
        self._mark(number)
        answer = self._choices[number][1]
        if answer != "deny":
            self.dismiss(Reply(answer))
        else:
            field = self.query_one(Input)
            field.display = True
            field.focus()

    def action_choose_marked(self) -> None:
        self.action_choose(self._marked)

    def action_move(self, step: int) -> None:
        self._mark((self._marked + step) % len(self._choices))

    def action_deny(self) -> None:
        self.dismiss(Reply("deny"))

    def action_page(self, step: int) -> None:
        sheet = self.query_one(Sheet)
        sheet.scroll_relative(y=step * max(1, sheet.size.height - 1), animate=False)

    def action_turn_columns(self) -> None:
        sheet = self.query_one(Sheet)
        self._two_columns = not self._wide(sheet.size.width)
        sheet.on_resize()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(Reply("deny", event.value.strip()))

    def _draw(self, width: int, look: Look) -> list[Strip]:
        return draw_call(self._question.call, width, look, self._wide(width), self._question.before)

    def _wide(self, width: int) -> bool:
        return width >= MIN_WIDTH if self._two_columns is None else self._two_columns

    def _mark(self, number: int) -> None:
        self._marked = number
        look = look_of(self.app.theme_variables)
        text = Text()
        for at, (choice, _) in enumerate(self._choices):
            here = at == number
            text.append("❯ " if here else "  ", look.accent)
            text.append(f"{at + 1} {choice.format(name=self._question.call.name)}\n", look.bold if here else look.text)
        columns = " · v turns one or two columns" if has_two_sides(self._question.call, self._question.before) else ""
        text.append(f"  Esc denies{columns}", look.dim)
        self.query_one("#approval-choices", Static).update(text)
