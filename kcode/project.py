"""A project's own configuration, `.kcode/config.toml`: read from a trusted folder alone, only to narrow the user's settings."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

from kcode.errors import ConfigError
from kcode.events import Notice
from kcode.paths import Paths
from kcode.settings import TABLES, Settings, Value, check_value
from kcode.trust import is_trusted
from kcode_sandbox.policy import parse_network

FILE = Path(".kcode") / "config.toml"
MAX_BYTES = 1 << 20
NARROWER: Mapping[str, tuple[str, ...]] = {
    "sandbox": ("danger-full-access", "workspace-write", "read-only"),
    "approval_mode": ("auto", "ask", "plan"),
}
"""Values from wide to narrow. The unset means a different one in different places, so no project may choose the widest then."""
BOUNDS = frozenset({"max_turns", "max_tokens", "time_limit_s", "max_answer_tokens", "context_limit"})


def in_project(settings: Settings, folder: Path, paths: Paths) -> tuple[Settings, tuple[Notice, ...]]:
    """The settings as they are in `folder`, and what the user has to know of it.

    A value that would widen the user's own is not taken, and a notice says so. Raises ConfigError for a file that cannot be
    read, an unknown key, one that is not a project's to set, or a wrong value.
    """
    file = folder / FILE
    if not os.path.lexists(file):
        return settings, ()
    if not is_trusted(paths, folder):
        text = f"{file} is not read, since this folder is not trusted; if you know what is in it: kcode trust {folder}"
        return settings, (Notice("info", text),)
    notices: list[Notice] = []
    for name, value in _read(file).items():
        if _narrows(name, value, settings):
            settings = replace(settings, **{name: value})
        elif value != getattr(settings, name):
            own = getattr(settings, name) or "what kcode chooses"
            text = f'{file}: {name} = "{value}" is wider than your own "{own}" and was not taken; a project may only narrow'
            notices.append(Notice("warning", text))
    return settings, tuple(notices)


def _read(file: Path) -> dict[str, Value]:
    """The file's settings, each one of those that a project may make."""
    try:
        data = tomllib.loads(_text(file))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; fix it or remove it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text (byte {error.start}); fix it or remove it") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    data = {name: value for name, value in data.items() if name not in TABLES}
    known = {field.name for field in fields(Settings)}
    for name in data:
        if name not in _NARROWS:
            wrong = "is not a project's to set" if name in known else "is no setting"
            raise ConfigError(f"{file}: {name!r} {wrong}; a project may set {', '.join(sorted(_NARROWS))}")
    return {name: check_value(name, value, str(file)) for name, value in data.items()}


def _text(file: Path) -> str:
    """Of a plain file; neither a link in its place nor a pipe is read."""
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as opened:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            raise ConfigError(f"{file} is no plain file of at most {MAX_BYTES} bytes; remove it")
        return opened.read(MAX_BYTES).decode()


def _narrows(name: str, value: Value, settings: Settings) -> bool:
    return _NARROWS[name](name, value, getattr(settings, name))


def _is_later(name: str, value: Value, own: Value) -> bool:
    order = NARROWER[name]
    return order.index(str(value)) >= (order.index(str(own)) if own in order else 1)


def _is_lower(_: str, value: Value, own: Value) -> bool:
    """0 is no bound of one's own."""
    assert isinstance(value, int | float)
    assert isinstance(own, int | float)
    return value > 0 and (own == 0 or value <= own)


def _is_smaller_network(name: str, value: Value, own: Value) -> bool:
    try:
        (wanted, hosts), (allowed, own_hosts) = parse_network(str(value)), parse_network(str(own))
    except ValueError as error:
        raise ConfigError(f"{FILE}: {error}") from error
    if wanted == "off" or allowed == "on":
        return True
    return wanted == allowed == "allow-list" and set(hosts) <= set(own_hosts)


_NARROWS: Mapping[str, Callable[[str, Value, Value], bool]] = {
    "sandbox": _is_later,
    "approval_mode": _is_later,
    "network": _is_smaller_network,
    **dict.fromkeys(BOUNDS, _is_lower),
}
