"""What kcode itself says to the model in the user's place when an answer needs mending."""

from __future__ import annotations

from kcode.messages import Message

CUT_OFF = "Your answer was cut off at its length limit. Go on exactly where it stopped, in smaller pieces."
EMPTY = "Your answer was empty. Make a call, or say what you found and finish."


def is_hint(message: Message) -> bool:
    """Whether no person said it."""
    return message.role == "user" and message.text in (CUT_OFF, EMPTY)
