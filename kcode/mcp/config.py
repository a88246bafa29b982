"""Which tool servers (MCP) there are: `[mcp.NAME]` of the user's config.toml, and of a trusted folder's own configuration.

A folder may also bring the `.mcp.json` that other programs read. A server of the folder never replaces the user's of that name.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kcode.errors import ConfigError
from kcode.events import Notice
from kcode.paths import Paths
from kcode.trust import is_trusted

MAX_BYTES = 1 << 20
NAME = re.compile(r"[A-Za-z0-9-]{1,32}")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class ServerConfig(BaseModel):
    """A server: a program (`command`) or an address (`url`). `${NAME}` in env and headers is a variable of kcode's environment.

    `access` is what its tools count as when approval is decided.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["stdio", "http", "streamable-http"] | None = None
    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    url: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    access: Literal["read", "write", "execute"] = "execute"
    start_timeout_s: float = Field(default=20, gt=0, le=600)
    timeout_s: float = Field(default=120, gt=0, le=3600)

    @model_validator(mode="after")
    def _is_one_kind(self) -> ServerConfig:
        if bool(self.command) == bool(self.url):
            raise ValueError("give either command or url")
        return self


def find_servers(paths: Paths, workspace: Path) -> dict[str, ServerConfig]:
    """By name. Raises ConfigError naming the file and what is wrong in it."""
    servers: dict[str, ServerConfig] = {}
    if is_trusted(paths, workspace):
        servers |= _of_json(workspace / ".mcp.json")
        servers |= _of_toml(workspace / ".kcode" / "config.toml")
    return servers | _of_toml(paths.config_file)


def ignored(paths: Paths, workspace: Path) -> tuple[Notice, ...]:
    """What the user has to know of a folder whose servers do not count."""
    file = workspace / ".mcp.json"
    if not os.path.lexists(file) or is_trusted(paths, workspace):
        return ()
    text = f"{file} is not read, since this folder is not trusted; if you know what is in it: kcode trust {workspace}"
    return (Notice("info", text),)


def expanded(values: dict[str, str]) -> dict[str, str]:
    """Raises ConfigError for a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"the environment variable {match[1]} is not set")
        return os.environ[match[1]]

    return {name: _VARIABLE.sub(value, text) for name, text in values.items()}


def _text(file: Path) -> str:
    try:
        if file.is_symlink() or (file.exists() and (not file.is_file() or file.stat().st_size > MAX_BYTES)):
            raise ConfigError(f"{file} is no plain file of at most {MAX_BYTES} bytes; remove it")
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; fix it or remove it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text (byte {error.start}); fix it or remove it") from error


def _of_toml(file: Path) -> dict[str, ServerConfig]:
    try:
        return parsed(tomllib.loads(_text(file)).get("mcp", {}), file)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error


def _of_json(file: Path) -> dict[str, ServerConfig]:
    try:
        value = json.loads(_text(file) or "{}")
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from error
    return parsed(value.get("mcpServers", {}) if isinstance(value, dict) else value, file)


def parsed(table: object, file: Path) -> dict[str, ServerConfig]:
    """The servers of a table read from `file`. Raises ConfigError naming what is wrong in it."""
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: the tool servers must be a table of names")
    servers: dict[str, ServerConfig] = {}
    for name, entry in table.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(f"{file}: a server's name has up to 32 letters, digits and hyphens, not {name!r}")
        try:
            servers[name] = ServerConfig.model_validate(entry)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(("mcp", name, *map(str, first["loc"])))
            raise ConfigError(f"{file}: {place}: {first['msg']}") from error
    return servers
