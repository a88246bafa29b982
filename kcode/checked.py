"""Dataclasses from data of outside: what pydantic does too, but a session would have to wait for it when it is opened.

Importing pydantic and building its validators takes longer than reading 300 calls with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

Check = Callable[[object], bool]


def checked(cls: type, fields: dict[str, object]) -> object:
    """An instance of the dataclass `cls`. Fields it does not know are left out; an integer will do for a float.

    Raises ValueError naming the field that is missing or of another type.
    """
    given: dict[str, object] = {}
    for name, check, is_required in _plan(cls):
        if name in fields:
            value = fields[name]
            if not check(value):
                raise ValueError(f"{cls.__name__}.{name} cannot be {value!r:.80}")
            given[name] = value
        elif is_required:
            raise ValueError(f"{cls.__name__}.{name} is missing")
    return cls(**given)


@cache
def _plan(cls: type) -> tuple[tuple[str, Check, bool], ...]:
    """Each field: its name, what it may be, whether it must be there."""
    hints = get_type_hints(cls)
    missing = dataclasses.MISSING
    return tuple(
        (field.name, _check_of(hints[field.name]), field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(cls)
    )


def _check_of(hint: object) -> Check:
    """Whether a value is of the type `hint`: plain types, dataclasses, unions of them, literals and tuples of one kind."""
    origin = get_origin(hint)
    if origin is Literal:
        words = get_args(hint)
        return lambda value: value in words
    if origin in {Union, UnionType}:
        checks = [_check_of(one) for one in get_args(hint)]
        return lambda value: any(check(value) for check in checks)
    if origin is tuple:
        every = _check_of(get_args(hint)[0])
        return lambda value: isinstance(value, tuple) and all(map(every, value))
    if hint is None or hint is NoneType:
        return lambda value: value is None
    if hint is float:
        return lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    assert isinstance(hint, type), hint
    return lambda value: isinstance(value, hint)
