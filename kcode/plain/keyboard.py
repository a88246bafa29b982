"""What is typed, a line at a time, with the line editing and the history that readline gives."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from kcode.approval import Question, Reply
from kcode.plain.lines import Lines
from kcode.tui.clean import clean, one_line
from kcode.tui.preview import draw_call
from kcode.tui.screens.approval import CHOICES, GRANT_CHOICES
from kcode.tui.theme import DARK, look_of

WIDTH = 100


def typed(prompt: str) -> str:
    """A line. Raises EOFError, and KeyboardInterrupt whoever else is told of Ctrl+C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(prompt)
    finally:
        signal.signal(signal.SIGINT, before)


def message() -> str:
    """What is typed next, "" for nothing; a backslash at a line's end goes on with the next."""
    lines: list[str] = []
    while True:
        line = typed("… " if lines else "> ")
        if not line.endswith("\\"):
            return "\n".join([*lines, line]).strip()
        lines.append(line[:-1])


def chosen(lines: Lines, choices: Sequence[str]) -> int | None:
    """The number of one of the choices, None for none of them."""
    lines.say("\n".join(f"{number} {one_line(choice)}" for number, choice in enumerate(choices, 1)))
    while True:
        try:
            answer = typed(f"1 to {len(choices)}, Enter for none: ").strip()
        except (EOFError, KeyboardInterrupt):
            return None
        if not answer:
            return None
        if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(choices):
            return int(answer) - 1


def reply(lines: Lines, question: Question) -> Reply:
    """The person's answer; nothing but a number that says so allows. Ctrl+D denies, Ctrl+C raises KeyboardInterrupt."""
    look = look_of(DARK.to_color_system().generate())
    shown = "\n".join(f"  {strip.text.rstrip()}" for strip in draw_call(question.call, WIDTH, look, before=question.before))
    choices = GRANT_CHOICES if question.is_grant else CHOICES
    asked = "Open the sandbox for" if question.is_grant else "Allow"
    lines.say(f"{asked} {one_line(question.summary)}? {clean(question.reason)}\n{shown}".rstrip())
    lines.say("\n".join(f"{number} {words.format(name=question.call.name)}" for number, (words, _) in enumerate(choices, 1)))
    try:
        while True:
            number = typed(f"1 to {len(choices)}: ").strip()
            if number in {str(at) for at in range(1, len(choices) + 1)}:
                break
        answer = choices[int(number) - 1][1]
        return Reply(answer) if answer != "deny" else Reply("deny", typed("What should it do instead? ").strip())
    except EOFError:
        return Reply("deny")
