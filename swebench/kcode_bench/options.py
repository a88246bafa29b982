"""Options that several commands share, as one decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Decorated = TypeVar("Decorated", bound=Callable[..., object])


def with_options(options: tuple[Callable[[Decorated], Decorated], ...]) -> Callable[[Decorated], Decorated]:
    """In the order in which help lists them."""

    def add(function: Decorated) -> Decorated:
        for option in reversed(options):
            function = option(function)
        return function

    return add
