"""Declarations in TypeScript, written out by hand from the rules of the published encoder."""

from __future__ import annotations

import pytest

from kcode_backend.chat.toolscript import NoTypeScript, declare


def body(schema: object, description: str | None = None) -> str:
    """What stands between the braces of the namespace."""
    function: dict[str, object] = {"name": "f", "parameters": schema}
    text = declare([{"type": "function", "function": function | ({} if description is None else {"description": description})}])
    head, tail = "# Tools\n\n## functions\nnamespace functions {\n", "\n}\n"
    assert text.startswith(head)
    assert text.endswith(tail)
    return text[len(head) : -len(tail)]


def of(*members: str) -> str:
    return "\n".join(["type f = (_: {", *members, "}) => any;"])


def test_required_members_come_first_and_each_group_is_sorted() -> None:
    properties = {name: {"type": "string"} for name in ("d", "b", "c", "a")}
    assert body({"type": "object", "properties": properties, "required": ["d", "b"]}) == of(
        "  b: string,", "  d: string,", "  a?: string,", "  c?: string"
    )


CASES: dict[str, tuple[dict[str, object], list[str]]] = {
    "scalars": (
        {"a": {"type": "integer"}, "b": {"type": "number"}, "c": {"type": "boolean"}, "d": {"type": "null"}, "e": {}, "g": True},
        ["  a?: number,", "  b?: number,", "  c?: boolean,", "  d?: null,", "  e?: any,", "  g?: any"],
    ),
    "a description of several lines": (
        {"a": {"type": "string", "description": "One.\n\nThree."}},
        ["  // One.", "", "  // Three.", "  a?: string"],
    ),
    "limits of strings": (
        {"a": {"type": "string", "pattern": "^x$", "minLength": 1, "maxLength": 9, "format": "date"}},
        ["  // maxLength: 9, minLength: 1, pattern: ^x$", "  a?: string"],
    ),
    "limits of numbers": (
        {"a": {"type": "integer", "minimum": 0, "maximum": 1.5, "multipleOf": 2}},
        ["  // maximum: 1.5, minimum: 0", "  a?: number"],
    ),
    "limits of arrays": (
        {"a": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}},
        ["  // maxItems: 3, minItems: 1", "  a?: Array<number>"],
    ),
    "defaults": (
        {
            "a": {"type": "string", "default": 'é"'},
            "b": {"type": "integer", "default": 3},
            "c": {"type": "object", "default": {"z": 1, "y": [None]}},
            "d": {"type": "string", "default": None},
        },
        [
            *('  // Default: "é\\""', "  a?: string,", "  // Default: 3", "  b?: number,"),
            *('  // Default: {"y": [null], "z": 1}', "  c?: {},", "  d?: string"),
        ],
    ),
    "description, limits and default in this order": (
        {"a": {"type": "string", "description": "D.", "maxLength": 5, "default": "x"}},
        ["  // D.", "  // maxLength: 5", '  // Default: "x"', "  a?: string"],
    ),
    "enumerations": (
        {"a": {"type": "string", "enum": ["p", "q"]}, "b": {"enum": [1, 2.5, "x"]}},
        ['  a?: "p" | "q",', '  b?: 1 | 2.5 | "x"'],
    ),
    "choices": (
        {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "b": {"type": ["integer", "null", "array", "object"]}},
        ["  a?: string | null,", "  b?: number | null | Array<any> | {}"],
    ),
    "arrays": (
        {"a": {"type": "array"}, "b": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}},
        ["  a?: Array<any>,", "  b?: Array<Array<string>>"],
    ),
    "items with a description": (
        {"a": {"type": "array", "items": {"type": "string", "description": "One."}}},
        ["  a?: Array<", "    // One.", "    string", "  >"],
    ),
    "objects in objects": (
        {"a": {"type": "object", "properties": {"y": {"type": "string"}, "x": {"type": "object"}}, "required": ["y"]}},
        ["  a?: {", "    y: string,", "    x?: {}", "  }"],
    ),
    "arrays of objects": (
        {"a": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string", "description": "X."}}}}},
        ["  a?: Array<{", "    // X.", "    x?: string", "  }>"],
    ),
    "other members": (
        {
            "a": {"type": "object", "additionalProperties": True},
            "b": {"type": "object", "additionalProperties": False},
            "c": {"type": "object", "additionalProperties": {"type": "integer"}, "properties": {"x": {"type": "string"}}},
        },
        [
            *("  a?: {", "    [k: string]: any", "  },", "  b?: {", "    [k: string]: never", "  },"),
            *("  c?: {", "    x?: string,", "    [k: string]: number", "  }"),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_members(case: str) -> None:
    properties, lines = CASES[case]
    assert body({"type": "object", "properties": properties}) == of(*lines)


def test_a_description_stands_above_its_function() -> None:
    assert body({}, "Does it.\nWell.") == "// Does it.\n// Well.\ntype f = (_: {}) => any;"
    assert body(None, "") == "type f = (_: {}) => any;"


def test_definitions_become_interfaces() -> None:
    schema = {
        "type": "object",
        "$defs": {
            "Point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"], "description": "Where."},
            "Line": {"type": "object", "properties": {"from": {"$ref": "#/$defs/Point"}}},
        },
        "properties": {"line": {"$ref": "#/$defs/Line", "description": "Which."}},
    }
    lines = [
        *("interface Line {", "  from?: Point", "}"),
        *("// Where.", "interface Point {", "  x: number", "}"),
        *("type f = (_: {", "  // Which.", "  line?: Line", "}) => any;"),
    ]
    assert body(schema) == "\n".join(lines)


def test_parameters_that_refer_to_themselves_have_a_name() -> None:
    schema = {"type": "object", "properties": {"value": {"type": "string"}, "next": {"$ref": "#"}}, "required": ["value"]}
    assert body(schema) == "interface parameters {\n  next?: parameters,\n  value: string\n}\ntype f = (_: parameters) => any;"


def test_a_definition_that_refers_to_the_parameters_gives_them_no_interface() -> None:
    schema = {"type": "object", "$defs": {"T": {"$ref": "#"}}, "properties": {"a": {"$ref": "#/$defs/T"}}}
    assert body(schema) == "\n".join(["interface T parameters", of("  a?: T")])


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"a": {"description": "no type"}}}, "neither type, enum, anyOf nor"),
        ({"properties": {"a": {"$ref": "#/definitions/X"}}}, "'#/definitions/X' names no definition"),
        ({"properties": {"a": {"$ref": "#/$defs/X"}}}, "names no definition"),
        ({"properties": {"a": {"type": ["string", "date"]}}}, "'date' is not known"),
        ({"properties": []}, "not an object"),
        ({"properties": {"a": {"type": "boolean", "enum": [1]}}}, "the enum's 1 is no boolean"),
        ({"properties": {"a": {"type": ["string", "null"], "enum": [None, 2]}}}, "the enum's 2 is no string"),
        ({"properties": {"a": {"type": ["string", "number"], "enum": ["x"]}}}, "has no form"),
    ],
)
def test_what_has_no_form_is_told(schema: dict[str, object], message: str) -> None:
    with pytest.raises(NoTypeScript, match=message):
        body(schema)
