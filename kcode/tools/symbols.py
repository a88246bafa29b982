"""Functions, methods and classes of a source file, found with tree-sitter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kcode.tools.syntax import MAX_PARSED_BYTES, language_of, parse

if TYPE_CHECKING:
    from tree_sitter import Node

SymbolKind = Literal["function", "method", "class", "module"]

# Node types whose `name` field names what they define.
NAMED: dict[str, SymbolKind] = {
    "function_definition": "function",
    "function_declaration": "function",
    "generator_function_declaration": "function",
    "method_definition": "function",
    "method_declaration": "function",
    "constructor_declaration": "function",
    "function_item": "function",
    "class_definition": "class",
    "class_declaration": "class",
    "abstract_class_declaration": "class",
    "interface_declaration": "class",
    "enum_declaration": "class",
    "record_declaration": "class",
    "type_spec": "class",
    "struct_declaration": "class",
    "object_declaration": "class",
    "object_definition": "class",
    "trait_declaration": "class",
    "trait_definition": "class",
    "protocol_declaration": "class",
    "enum_definition": "class",
    "class": "class",
    "module": "module",
    "namespace_declaration": "module",
    "method": "function",
    "singleton_method": "function",
    "init_declaration": "function",
    "protocol_function_declaration": "function",
    "local_function_statement": "function",
    "struct_item": "class",
    "enum_item": "class",
    "trait_item": "class",
    "class_specifier": "class",
    "struct_specifier": "class",
    "union_specifier": "class",
    "mod_item": "module",
    "internal_module": "module",
    "namespace_definition": "module",
}
JAVASCRIPT_FUNCTIONS = {"arrow_function", "function_expression", "generator_function"}
# Statements that belong to the single definition inside them: `const f = …;`, `module.exports.f = …;`.
STATEMENTS = {"lexical_declaration", "variable_declaration", "expression_statement", "type_declaration"}
# What stands around a definition and is kept when only the definition is replaced.
WRAPPERS = {"decorated_definition", "export_statement", "template_declaration", "ambient_declaration"}
ATTRIBUTES = {"attribute_item", "decorator"}


@dataclass(frozen=True, slots=True)
class Symbol:
    """One definition. Lines are 1-based and inclusive; bytes are offsets into the UTF-8 source.

    `qualified` joins the enclosing names with dots, also in C++ and Rust. `start_line` and `start_byte` include
    decorators, attributes, `export` and `template`; `core_line` and `core_byte` are where the definition itself begins.
    """

    name: str
    qualified: str
    kind: SymbolKind
    start_line: int
    core_line: int
    end_line: int
    start_byte: int
    core_byte: int
    core_end_byte: int
    end_byte: int


def symbols(path: str, source: str) -> tuple[Symbol, ...]:
    """All definitions in file order, outer before inner; empty for unknown languages and files over 2 MB."""
    language = language_of(path)
    data = source.encode()
    if language is None or len(data) > MAX_PARSED_BYTES:
        return ()
    return tuple(walk(parse(language, data).root_node, (), "module"))


def named(found: tuple[Symbol, ...], name: str) -> tuple[Symbol, ...]:
    """The symbols `name` may mean: by qualified name, else by a tail of it (`f` or `C.f` for `n.C.f`)."""
    wanted = name.strip().removesuffix("()").replace("::", ".").replace("#", ".")
    exact = tuple(symbol for symbol in found if symbol.qualified == wanted)
    return exact or tuple(symbol for symbol in found if symbol.qualified.endswith("." + wanted))


def walk(node: Node, scope: tuple[str, ...], scope_kind: SymbolKind) -> Iterator[Symbol]:
    """An explicit stack: sources may nest deeper than Python recurses."""
    stack: list[tuple[Node, tuple[str, ...], SymbolKind]] = [(node, scope, scope_kind)]
    while stack:
        current, names, kind = stack.pop()
        definition = define(current)
        if definition is not None:
            parts, defined = definition
            if defined == "function" and (kind == "class" or len(parts) > 1):
                defined = "method"
            if parts:
                names = (*names, *parts)
                yield place(current, names, defined)
            kind = defined
        elif current.type == "impl_item" and (target := current.child_by_field_name("type")) is not None:
            names, kind = (*names, plain_type(text_of(target))), "class"
        elif name := object_name(current):
            names, kind = (*names, name), "class"
        for child in reversed(current.named_children):
            stack.append((child, names, kind))


def object_name(node: Node) -> str:
    """`api` for `const api = {…}`, whose functions are then called api.get and so on; else empty."""
    value = node.child_by_field_name("value") if node.type == "variable_declarator" else None
    return name_of(node) if value is not None and value.type == "object" and name_of(node).isidentifier() else ""


def define(node: Node) -> tuple[tuple[str, ...], SymbolKind] | None:
    """The name parts and kind that `node` defines, or None."""
    kind = NAMED.get(node.type)
    if kind is None:
        return define_javascript(node)
    if node.type.endswith("_specifier") and node.child_by_field_name("body") is None:
        return None  # a use of the type, not its definition
    if node.type == "method_declaration" and (receiver := node.child_by_field_name("receiver")) is not None:
        return (receiver_type(text_of(receiver)), name_of(node)), "function"
    name = name_of(node)
    if not name and node.type == "function_definition":
        name = c_function_name(node)
    parts = tuple(part for part in name.replace(":", ".").split(".") if part)
    return (parts, kind) if parts else None


def define_javascript(node: Node) -> tuple[tuple[str, ...], SymbolKind] | None:
    """Functions that get their name from what they are assigned to."""
    match node.type:
        case "variable_declarator":
            target, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        case "assignment_expression":
            target, value = node.child_by_field_name("left"), node.child_by_field_name("right")
        case "pair":
            target, value = node.child_by_field_name("key"), node.child_by_field_name("value")
        case "field_definition":
            target, value = node.child_by_field_name("property"), node.child_by_field_name("value")
        case "public_field_definition":
            target, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        case "export_statement":
            value = node.child_by_field_name("value")
            return (("default",), "function") if value is not None and value.type in JAVASCRIPT_FUNCTIONS else None
        case _:
            return None
    if target is None or value is None or value.type not in JAVASCRIPT_FUNCTIONS:
        return None
    parts = [part.strip("'\"#") for part in text_of(target).split(".")]
    parts = [part for part in parts if part not in {"module", "exports", "prototype", "this", ""}]
    return (tuple(parts or ["exports"]), "function") if all(part.isidentifier() or "$" in part for part in parts) else None


def place(node: Node, names: tuple[str, ...], kind: SymbolKind) -> Symbol:
    """Where the definition begins with and without what belongs to it."""
    core = node
    if core.parent is not None and core.parent.type in STATEMENTS and core.parent.named_child_count == 1:
        core = core.parent
    outer = core
    while outer.parent is not None and outer.parent.type in WRAPPERS:
        outer = outer.parent
    first = outer
    while (before := first.prev_named_sibling) is not None and before.type in ATTRIBUTES:
        first = before
    return Symbol(
        name=names[-1],
        qualified=".".join(names),
        kind=kind,
        start_line=first.start_point[0] + 1,
        core_line=core.start_point[0] + 1,
        end_line=outer.end_point[0] + 1,
        start_byte=first.start_byte,
        core_byte=core.start_byte,
        core_end_byte=core.end_byte,
        end_byte=outer.end_byte,
    )


def text_of(node: Node) -> str:
    return (node.text or b"").decode(errors="replace")


def name_of(node: Node) -> str:
    name = node.child_by_field_name("name")
    return text_of(name).strip("#'\"") if name is not None else ""


def c_function_name(node: Node) -> str:
    """The name inside nested declarators: `static char *ns::C::f(int)` is `ns::C::f`."""
    current = node.child_by_field_name("declarator")
    while current is not None and current.type != "function_declarator":
        current = current.child_by_field_name("declarator") or next(iter(current.named_children), None)
    inner = current.child_by_field_name("declarator") if current is not None else None
    return text_of(inner).replace(" ", "") if inner is not None else ""


def receiver_type(receiver: str) -> str:
    """`(t *Stack[T])` is `Stack`."""
    return plain_type(receiver.strip("()").split()[-1] if receiver.strip("() ") else "")


def plain_type(text: str) -> str:
    """A type without pointer, path and parameters."""
    return text.split("<")[0].split("[")[0].lstrip("*&").split("::")[-1].strip()
