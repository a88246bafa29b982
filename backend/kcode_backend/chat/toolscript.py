"""Tools declared as TypeScript, the way Kimi K2.5 and later were trained to read them.

The rules are those of the encoder that is published beside the tokenizer: keys are sorted at every depth first, required members
come before optional ones, and what a type cannot say stands in comment lines above it. A schema that those rules have no words
for makes the whole list JSON there, so here too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Json = object
Schema = Mapping[str, Json]

_INDENT = "  "
_CONSTRAINTS = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}
_UNION = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "{}",
    "array": "Array<any>",
}
_VALUES: dict[str, tuple[type, ...]] = {"string": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,)}
_OWN_REFERENCE = "#"
_DEFINITION = "#/$defs/"
_ROOT = "parameters"
"""What a schema that refers to itself is called."""


class NoTypeScript(ValueError):
    """A schema has no form in TypeScript; the message says what of it."""


def declare(tools: Sequence[Schema]) -> str:
    """The declaration of these tools, each {"type": "function", "function": {...}}. Raises NoTypeScript."""
    functions = [_function(_object_of(sort_keys(tool), "function")) for tool in tools if tool.get("type") == "function"]
    return "# Tools\n\n## functions\nnamespace functions {\n" + "\n".join(functions) + "\n}\n"


def sort_keys(value: Json) -> Json:
    """The value with the keys of all its objects in order."""
    if isinstance(value, Mapping):
        return {key: sort_keys(value[key]) for key in sorted(value)}
    return [sort_keys(item) for item in value] if isinstance(value, list) else value


@dataclass(slots=True)
class _Scope:
    """What references of one function may name, and whether one named the function's own parameters."""

    definitions: dict[str, Schema] = field(default_factory=dict)
    refers_to_root: bool = False


def _function(function: Schema) -> str:
    parameters = _object_of(function, "parameters")
    scope = _Scope()
    _collect(parameters, scope)
    root = _object(parameters, "", scope)
    # A definition that names the parameters does not make an interface of them.
    refers_to_root = scope.refers_to_root
    interfaces: list[str] = []
    for name, schema in scope.definitions.items():
        interfaces += [*_comment(schema.get("description"), ""), f"interface {name} {_type(schema, '', scope)}"]
    if refers_to_root:
        members = ",\n".join(_member(name, parameters, _INDENT, scope) for name in _object_of(parameters, "properties"))
        interfaces.insert(0, f"interface {_ROOT} {{\n{members}\n}}")
        root = _ROOT
    lines = [*interfaces, *_comment(function.get("description"), ""), f"type {function.get('name')} = (_: {root}) => any;"]
    return "\n".join(lines)


def _collect(schema: Json, scope: _Scope) -> None:
    if isinstance(schema, Mapping):
        scope.definitions.update({name: _schema(found) for name, found in _object_of(schema, "$defs").items()})
        for inner in schema.values():
            _collect(inner, scope)
    elif isinstance(schema, list):
        for inner in schema:
            _collect(inner, scope)


def _type(schema: Json, indent: str, scope: _Scope) -> str:
    """What stands after the colon; `indent` is that of the line it begins in."""
    if isinstance(schema, bool):
        return "any" if schema else "null"
    known = _schema(schema)
    kind = known.get("type")
    if "$ref" in known:
        return _reference(str(known["$ref"]), scope)
    if "anyOf" in known:
        return " | ".join(_type(choice, indent, scope) for choice in _list_of(known, "anyOf"))
    if "enum" in known:
        _check_enum(kind, _list_of(known, "enum"))
        return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in _list_of(known, "enum"))
    if isinstance(kind, list):
        unknown = [name for name in kind if name not in _UNION]
        if unknown:
            raise NoTypeScript(f"type {unknown[0]!r} is not known")
        return " | ".join(_UNION[name] for name in kind)
    if kind == "object":
        return _object(known, indent, scope)
    if kind == "array":
        return _array(known.get("items"), indent, scope)
    if isinstance(kind, str):
        return "number" if kind == "integer" else kind
    if known:
        raise NoTypeScript(f"a schema has neither type, enum, anyOf nor $ref but {', '.join(known)}")
    return "any"


def _check_enum(kind: Json, values: list[Json]) -> None:
    """NoTypeScript when a value is not of the stated type; null is of any, and a list of types is one and perhaps null."""
    if isinstance(kind, list):
        if not kind or len(kind) > 2 or (len(kind) == 2 and "null" not in kind):
            raise NoTypeScript(f"an enum of the types {kind!r} has no form")
        kind = next((name for name in kind if name != "null"), "null")
    allowed = _VALUES.get(kind) if isinstance(kind, str) else None
    wrong = [value for value in values if allowed is not None and value is not None and not isinstance(value, allowed)]
    if wrong:
        raise NoTypeScript(f"the enum's {wrong[0]!r} is no {kind}")


def _reference(reference: str, scope: _Scope) -> str:
    if reference == _OWN_REFERENCE:
        scope.refers_to_root = True
        return _ROOT
    name = reference.removeprefix(_DEFINITION)
    if not reference.startswith(_DEFINITION) or name not in scope.definitions:
        raise NoTypeScript(f"$ref {reference!r} names no definition in $defs")
    return name


def _object(schema: Schema, indent: str, scope: _Scope) -> str:
    properties = _object_of(schema, "properties")
    required = set(map(str, _list_of(schema, "required")))
    ordered = [
        *sorted(name for name in properties if name in required),
        *sorted(name for name in properties if name not in required),
    ]
    inner = indent + _INDENT
    members = [_member(name, schema, inner, scope) for name in ordered]
    others = schema.get("additionalProperties")
    if others is not None:
        kind = "never" if others is False else "any" if others is True else _type(others, inner, scope)
        members.append(f"{inner}[k: string]: {kind}")
    return "{\n" + ",\n".join(members) + f"\n{indent}}}" if members else "{}"


def _member(name: str, owner: Schema, indent: str, scope: _Scope) -> str:
    schema = _object_of(owner, "properties")[name]
    optional = name not in _list_of(owner, "required")
    default = schema.get("default") if isinstance(schema, Mapping) else None
    notes = _notes(schema, indent)
    if default is not None:
        # The published encoder writes numbers and booleans as Python does.
        plain = isinstance(default, bool | int | float)
        notes.append(
            f"{indent}// Default: {default!r}" if plain else f"{indent}// Default: {json.dumps(default, ensure_ascii=False)}"
        )
    return "\n".join([*notes, f"{indent}{name}{'?' if optional else ''}: {_type(schema, indent, scope)}"])


def _array(items: Json, indent: str, scope: _Scope) -> str:
    if not items:
        return "Array<any>"
    inner = indent + _INDENT
    notes = _notes(items, inner)
    if not notes:
        return f"Array<{_type(items, indent, scope)}>"
    return "\n".join(["Array<", *notes, f"{inner}{_type(items, inner, scope)}", f"{indent}>"])


def _notes(schema: Json, indent: str) -> list[str]:
    """The comment lines above a member or an item."""
    if not isinstance(schema, Mapping):
        return []
    lines = _comment(schema.get("description"), indent)
    kind = schema.get("type")
    if isinstance(kind, str) and not {"$ref", "anyOf", "enum"} & set(schema):
        limits = [f"{name}: {schema[name]}" for name in _CONSTRAINTS.get(kind, ()) if name in schema]
        lines += [f"{indent}// {', '.join(limits)}"] if limits else []
    return lines


def _comment(description: Json, indent: str) -> list[str]:
    """An empty line of a description stays empty."""
    if not isinstance(description, str) or not description:
        return []
    return [f"{indent}// {line}" if line else "" for line in description.split("\n")]


def _schema(value: Json) -> Schema:
    if not isinstance(value, Mapping):
        raise NoTypeScript(f"{value!r} stands where a schema should")
    return value


def _object_of(owner: Json, key: str) -> dict[str, Json]:
    """The object under a key; an absent one is empty."""
    value = owner.get(key) if isinstance(owner, Mapping) else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise NoTypeScript(f"{key} is {value!r}, not an object")
    return value


def _list_of(owner: Schema, key: str) -> list[Json]:
    value = owner.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise NoTypeScript(f"{key} is {value!r}, not a list")
    return value
