"""The settings: one frozen object, read once. Defaults < file < environment < flags."""

from __future__ import annotations

import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Literal, get_args, get_origin

from kcode.errors import ConfigError

Value = str | int | float | bool | None
# A model's name that begins so is the path of a script of answers (models/scripted.py).
SCRIPTED = "scripted:"
# Tables of config.toml that are no settings: each is read where it is used.
TABLES = frozenset({"hooks", "mcp"})


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting kcode has. Each field is a key of config.toml and, as KCODE_NAME, an environment variable.

    model: a catalogue name, a .gguf file, a folder of safetensors, a name the server at `base_url` knows, or "scripted:FILE".
    base_url: an OpenAI-style server; empty means kcode's own engine.
    api_key_env: the environment variable that holds the server's key; the key itself is never a setting.
    profile: how the model is driven; auto chooses by the model's name and size. standard is the old name of generic.
    effort: how long the model may work and think; empty is the profile's own.
    sandbox: what commands may do with files.
    sandbox_backend: what holds them: auto is bubblewrap; landlock is weaker and for machines that deny namespaces; docker and
    podman run them in a container of the image `sandbox_image`.
    network: off, on, or the hosts they may reach ("example.org,*.example.net:8443").
    add_dir, read_dir: further folders that commands may write or read, with ":" between them.
    redaction: whether keys are taken out of what a model is sent; auto does it for servers that are not on this network.
    approval_mode: plan, ask or auto; empty is ask on a screen and auto headless.
    max_turns, max_tokens, time_limit_s: bounds of one turn: model calls, sampled tokens, seconds; 0 is the profile's own.
    max_answer_tokens: bound of one answer; 0 is the profile's own.
    context_limit: tokens to use at most; 0 is all the model has.
    temperature, top_p, top_k, seed: negative is the profile's own.
    thinking: off answers at once, with models that can do both; empty is the model's own choice.
    thinking_retention: whether past reasoning stays in the context of a Kimi model for good (all) or until the answer it led to
    is given (tool_cycle); empty is all with kcode's own engine, whose prompts only grow, and a server's own choice otherwise.
    kv: numbers of the local engine's cache of keys and values: f16, int8, int4; empty is its own choice.
    threads: of the local engine; 0 is its own choice. engine_idle_s: it ends after so long without a request.
    kv_disk_gb: computed contexts kept in the cache folder, so that a session resumes at once; 0 keeps none.
    expert_ram_gb: memory for experts of a model that is larger than memory; 0 is what is left beside its other parts.
    theme: the colours of the screen; empty is kcode's own.
    notifications: how the terminal calls who does not look at it when a turn has ended or a question waits: on is a notification
    of the desktop and the bell.
    """

    model: str = ""
    base_url: str = ""
    api_key_env: str = "KCODE_API_KEY"
    profile: Literal["auto", "kimi", "generic", "small", "standard"] = "auto"
    effort: Literal["", "low", "medium", "high"] = ""
    sandbox: Literal["read-only", "workspace-write", "danger-full-access"] = "workspace-write"
    sandbox_backend: Literal["auto", "bubblewrap", "landlock", "docker", "podman"] = "auto"
    sandbox_image: str = ""
    network: str = "off"
    add_dir: str = ""
    read_dir: str = ""
    redaction: Literal["auto", "on", "off"] = "auto"
    approval_mode: Literal["", "plan", "ask", "auto"] = ""
    max_turns: int = 0
    max_tokens: int = 0
    time_limit_s: float = 0.0
    max_answer_tokens: int = 0
    context_limit: int = 0
    temperature: float = -1.0
    top_p: float = -1.0
    top_k: int = -1
    seed: int = -1
    thinking: Literal["", "on", "off"] = ""
    thinking_retention: Literal["", "tool_cycle", "all"] = ""
    kv: Literal["", "f16", "int8", "int4"] = ""
    threads: int = 0
    engine_idle_s: float = 900.0
    kv_disk_gb: float = 10.0
    expert_ram_gb: float = 0.0
    theme: str = ""
    notifications: Literal["on", "bell", "off"] = "on"

    @property
    def api_key(self) -> str:
        """The server's key from the environment, or ""."""
        return os.environ.get(self.api_key_env, "")


# Read elsewhere: where kcode lives, the server's key, and what the engine's own process reads.
_OTHER_VARIABLES = frozenset({"KCODE_HOME", "KCODE_API_KEY"})
_OTHER_PREFIXES = ("KCODE_CPU_", "KCODE_ENGINE_", "KCODE_TEST_")
_SIGNED = frozenset({"temperature", "top_p", "top_k", "seed"})


@cache
def _types() -> dict[str, type | types.GenericAlias]:
    return typing.get_type_hints(Settings)


def check_value(name: str, value: object, source: str) -> Value:
    """`value` with the type of the field `name`, or a ConfigError naming both and where the value came from."""
    wanted = _types()[name]
    if get_origin(wanted) is Literal:
        allowed = [str(item) for item in get_args(wanted)]
        if isinstance(value, str) and value in allowed:
            return value
        raise ConfigError(f"{source}: {name} is {value!r}, it must be one of {', '.join(item for item in allowed if item)}")
    if wanted is str:
        if isinstance(value, str):
            return value
        raise ConfigError(f"{source}: {name} is {value!r}, it must be text")
    number = _number(value, whole=wanted is int)
    if number is None:
        raise ConfigError(f"{source}: {name} is {value!r}, it must be {'a whole number' if wanted is int else 'a number'}")
    if number < 0 and name not in _SIGNED:
        raise ConfigError(f"{source}: {name} is {value!r}, it must not be negative")
    return number


def _number(value: object, *, whole: bool) -> int | float | None:
    """Text or a number as a number; None when it is none. TOML's true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = int(value) if whole else float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (isinstance(value, float) and number != value):
        return None
    return number


def read_file(path: Path) -> dict[str, Value]:
    """The settings of a TOML file; an absent file holds none."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; fix it or remove it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); fix it or remove it") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return {name: check_value(_known(name, str(path)), value, str(path)) for name, value in data.items() if name not in TABLES}


def read_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    """The settings of KCODE_* variables; an empty variable is no setting."""
    found: dict[str, Value] = {}
    for variable, value in environment.items():
        name = variable.removeprefix("KCODE_").lower()
        # A setting may begin as what the engine's own process reads does.
        is_other = variable in _OTHER_VARIABLES or (variable.startswith(_OTHER_PREFIXES) and name not in _types())
        if variable.startswith("KCODE_") and not is_other and value:
            found[name] = check_value(_known(name, variable), value, variable)
    return found


def _known(name: str, source: str) -> str:
    if name in _types():
        return name
    raise ConfigError(
        f"{source}: unknown setting {name!r}; the settings are {', '.join(field.name for field in fields(Settings))}"
    )


def load_settings(file: Path, environment: Mapping[str, str], flags: Mapping[str, Value]) -> Settings:
    """Merge the sources. A flag that is None was not given. Raises ConfigError naming the value and its source."""
    merged = read_file(file) | read_environment(environment)
    for name, value in flags.items():
        if value is not None:
            merged[name] = check_value(_known(name, "command line"), value, f"--{name.removesuffix('_s').replace('_', '-')}")
    return replace(Settings(), **merged)
