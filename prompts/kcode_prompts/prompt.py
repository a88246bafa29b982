"""Texts for the model, as files beside this module. `$name` in a text is a value that must be given; `$$` is a dollar sign."""

from __future__ import annotations

from importlib.resources import files
from pathlib import PurePath
from string import Template


class PromptError(Exception):
    """A text does not exist, lacks a value, or was given one it does not use."""


def load(name: str, **values: str) -> str:
    """The text `name` ("system", "tools/read", …) with its values, stripped. Every value must be used, every `$name` given."""
    source = files("kcode_prompts").joinpath(f"{name}.md")
    try:
        template = Template(source.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PromptError(f"there is no text {name!r}") from error
    wanted = set(template.get_identifiers())
    if wanted != set(values):
        missing = ", ".join(sorted(wanted - set(values)))
        unused = ", ".join(sorted(set(values) - wanted))
        raise PromptError(f"text {name!r}: missing values: {missing or 'none'}; unused values: {unused or 'none'}")
    try:
        return template.substitute(values).strip()
    except ValueError as error:
        raise PromptError(f"text {name!r}: {error}") from error


def tool_names() -> frozenset[str]:
    """What kcode's own tools are called, in whatever profile."""
    texts = files("kcode_prompts").joinpath("tools").iterdir()
    return frozenset(PurePath(text.name).stem for text in texts if text.name.endswith(".md"))
