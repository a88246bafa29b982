"""One small realistic mistake in a function, as an edit of its source text: all other characters stay as they are.

Each operator looks at the syntax tree and proposes edits of one or two kinds; which of them become bugs is decided by
running the tests (bug_set.py). The order of the proposals is the order of the tree and depends on nothing else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

SYMBOLS: dict[type[ast.AST], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.In: "in", ast.NotIn: "not in",
    ast.Is: "is", ast.IsNot: "is not", ast.And: "and", ast.Or: "or", ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/",
    ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
}  # fmt: skip
BOUNDARY = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
OPPOSITE = {
    "<": ">",
    "<=": ">=",
    ">": "<",
    ">=": "<=",
    "==": "!=",
    "!=": "==",
    "in": "not in",
    "not in": "in",
    "is": "is not",
    "is not": "is",
}
ARITHMETIC = {"+": "-", "-": "+", "*": "+", "/": "//", "//": "/", "%": "//", "**": "*"}
CONFUSED_PAIRS = (
    ("min", "max"), ("any", "all"), ("upper", "lower"), ("isupper", "islower"), ("startswith", "endswith"), ("ceil", "floor"),
    ("keys", "values"), ("lstrip", "rstrip"), ("find", "rfind"), ("isalpha", "isalnum"),
)  # fmt: skip
CONFUSED = {
    **dict(CONFUSED_PAIRS),
    **{b: a for a, b in CONFUSED_PAIRS},
    "isdigit": "isalpha",
    "isnumeric": "isalpha",
    "extend": "append",
}
DROPPABLE_CALLS = {"abs", "sorted", "set", "int", "round", "reversed", "str", "len", "list", "float"}
DROPPABLE_METHODS = {"lower", "upper", "strip", "copy", "swapcase"}
ORDERLESS_CALLS = {"min", "max", "print", "gcd", "isinstance"}  # the last: nobody swaps a type and a value


@dataclass(frozen=True, slots=True)
class Mutation:
    """Replace `source[start:end]` (characters) by `text`."""

    kind: str
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]


class Function:
    """The function under mutation: its text, its tree, and where each node stands in the text."""

    def __init__(self, source: str, name: str) -> None:
        self.source = source
        self.lines = source.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        tree = ast.parse(source)
        self.node = next(node for node in reversed(tree.body) if isinstance(node, ast.FunctionDef) and node.name == name)
        self.body = [node for node in self.node.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
        self.nodes = [item for node in self.body for item in ast.walk(node)]
        self.parents = {child: node for node in ast.walk(self.node) for child in ast.iter_child_nodes(node)}

    def offset(self, line: int, column_bytes: int) -> int:
        """The tree counts columns in UTF-8 bytes."""
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column_bytes].decode())

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None, "parsed nodes have an end"
        assert node.end_col_offset is not None, "parsed nodes have an end"
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.expr | ast.stmt | ast.keyword) -> str:
        start, end = self.span(node)
        return self.source[start:end]

    def replace(self, kind: str, node: ast.expr | ast.stmt | ast.keyword, text: str) -> Mutation:
        return Mutation(kind, *self.span(node), text)

    def between(self, kind: str, left: ast.expr, right: ast.expr, old: str, new: str) -> Iterator[Mutation]:
        """Replace the operator `old` that stands between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        pattern = rf"\b{old}\b" if old.isalpha() else re.escape(old).replace(r"\ ", r"\s+")
        found = re.search(pattern, self.source[start:end])
        if found:
            yield Mutation(kind, start + found.start(), start + found.end(), new)

    def without_lines(self, kind: str, node: ast.stmt) -> Mutation:
        """Remove a statement with its lines, and one blank line where two would meet."""
        assert node.end_lineno is not None, "parsed nodes have an end"
        first, last = node.lineno - 1, node.end_lineno
        blank_after = last < len(self.lines) and not self.lines[last].strip()
        if blank_after and not self.lines[first - 1].strip():
            last += 1
        return Mutation(kind, self.starts[first], self.starts[last], "")

    def blocks(self) -> Iterator[list[ast.stmt]]:
        yield self.body
        for node in self.nodes:
            for name in ("body", "orelse"):
                block: object = getattr(node, name, None)
                if isinstance(block, list):
                    yield [item for item in block if isinstance(item, ast.stmt)]

    def in_index(self, node: ast.AST) -> bool:
        """Inside a subscript's index or an argument of range()."""
        parent = self.parents.get(node)
        while parent is not None and not isinstance(parent, ast.stmt):
            if isinstance(parent, ast.Subscript):
                return node is parent.slice
            if isinstance(parent, ast.Call):
                return isinstance(parent.func, ast.Name) and parent.func.id == "range"
            node, parent = parent, self.parents.get(parent)
        return False


def comparisons(function: Function) -> Iterator[Mutation]:
    for node in function.nodes:
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
                symbol = SYMBOLS[type(operator)]
                if symbol in BOUNDARY:
                    yield from function.between("boundary", left, right, symbol, BOUNDARY[symbol])
                yield from function.between("comparison", left, right, symbol, OPPOSITE[symbol])


def booleans(function: Function) -> Iterator[Mutation]:
    for node in function.nodes:
        if isinstance(node, ast.BoolOp):
            symbol = SYMBOLS[type(node.op)]
            for left, right in pairwise(node.values):
                yield from function.between("boolean", left, right, symbol, "or" if symbol == "and" else "and")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield function.replace("dropped_not", node, function.text(node.operand))


def is_literal_text(node: ast.expr) -> bool:
    return isinstance(node, ast.List | ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def arithmetic(function: Function) -> Iterator[Mutation]:
    for node in function.nodes:
        if isinstance(node, ast.BinOp) and not is_literal_text(node.left) and not is_literal_text(node.right):
            symbol = SYMBOLS.get(type(node.op), "")
            if symbol in ARITHMETIC:
                yield from function.between("arithmetic", node.left, node.right, symbol, ARITHMETIC[symbol])
        elif isinstance(node, ast.AugAssign) and not is_literal_text(node.value) and isinstance(node.op, ast.Add | ast.Sub):
            symbol = SYMBOLS[type(node.op)]
            yield from function.between("arithmetic", node.target, node.value, symbol + "=", ARITHMETIC[symbol] + "=")


def indexes(function: Function) -> Iterator[Mutation]:
    """Off by one in an index, a slice or a range; a bound of a slice forgotten."""
    for node in function.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub) and function.in_index(node):
            if isinstance(node.right, ast.Constant) and node.right.value == 1:
                yield function.replace("off_by_one", node, function.text(node.left))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and function.in_index(node):
            if function.text(node) == "-1" and not isinstance(function.parents[node], ast.Slice):
                yield function.replace("off_by_one", node, "0")
            elif function.text(node) == "-1":
                yield function.replace("off_by_one", node, "-2")
        elif isinstance(node, ast.Constant) and type(node.value) is int and function.in_index(node):
            if not isinstance(function.parents[node], ast.UnaryOp):
                yield from (
                    function.replace("off_by_one", node, str(node.value + step)) for step in (1, -1) if node.value + step >= 0
                )
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            stop = node.args[0] if len(node.args) == 1 else node.args[1]
            if isinstance(stop, ast.Name | ast.Call):
                yield from (function.replace("off_by_one", stop, f"{function.text(stop)} {step} 1") for step in "-+")
            if len(node.args) == 2:
                yield function.replace("range_start", node, f"range({function.text(stop)})")
        elif isinstance(node, ast.Slice):
            if node.lower is not None and node.upper is not None:
                yield function.replace("slice", node.lower, "")
                yield function.replace("slice", node.upper, "")
            elif node.step is not None and isinstance(function.parents[node], ast.Subscript):
                whole = function.parents[node]
                if isinstance(whole, ast.Subscript) and node.lower is None and node.upper is None:
                    yield function.replace("slice", whole, function.text(whole.value))


def constants(function: Function) -> Iterator[Mutation]:
    for node in function.nodes:
        if not isinstance(node, ast.Constant):
            continue
        parent = function.parents[node]
        whole_value = isinstance(parent, ast.Assign)
        if isinstance(node.value, bool):
            kind = "initial_value" if whole_value else "return_value"
            if whole_value or isinstance(parent, ast.Return):
                yield function.replace(kind, node, str(not node.value))
        elif type(node.value) is int and not function.in_index(node):
            kind = "initial_value" if whole_value else "constant"
            yield from (function.replace(kind, node, str(node.value + step)) for step in (1, -1) if node.value + step >= 0)


def missing_lines(function: Function) -> Iterator[Mutation]:
    """A guard or an update that is not there."""
    for block in function.blocks():
        if len(block) < 2:
            continue
        for node in block:
            single_lines = function.lines[node.lineno - 1][: node.col_offset].strip() == ""
            if isinstance(node, ast.If) and not node.orelse and single_lines:
                if isinstance(node.body[-1], ast.Return | ast.Continue | ast.Break | ast.Raise) and not isinstance(
                    function.parents[node], ast.If
                ):
                    yield function.without_lines("missing_guard", node)
            elif block is not function.body and single_lines and isinstance(node, ast.AugAssign | ast.Assign | ast.Expr):
                yield function.without_lines("missing_statement", node)


def moved_returns(function: Function) -> Iterator[Mutation]:
    """A return that slipped into the loop before it."""
    for block in function.blocks():
        for loop, node in pairwise(block):
            if isinstance(loop, ast.For | ast.While) and isinstance(node, ast.Return) and not loop.orelse:
                first, last = node.lineno - 1, node.end_lineno or node.lineno
                step = " " * (loop.body[0].col_offset - node.col_offset)
                text = "".join(step + line for line in function.lines[first:last])
                yield Mutation("early_return", function.starts[first], function.starts[last], text)


def jumps(function: Function) -> Iterator[Mutation]:
    for node in function.nodes:
        if isinstance(node, ast.Break | ast.Continue):
            yield function.replace("break", node, "continue" if isinstance(node, ast.Break) else "break")
        elif isinstance(node, ast.If) and function.text(node).startswith("elif"):
            start = function.span(node)[0]
            yield Mutation("elif", start, start + len("elif"), "if")


def names(function: Function) -> Iterator[Mutation]:
    """Another variable of the same statement or signature."""
    parameters = [argument.arg for argument in function.node.args.args]
    called = {node.func.id for node in function.nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    stored = {node.id for node in function.nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    known = (stored | set(parameters)) - called
    for node in function.nodes:
        if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load) or node.id not in known:
            continue
        home: ast.AST = node
        while not isinstance(home, ast.stmt):
            home = function.parents[home]
        header = {
            item.id
            for part in ast.iter_child_nodes(home)
            if isinstance(part, ast.expr)
            for item in ast.walk(part)
            if isinstance(item, ast.Name)
        }
        parent = function.parents[node]
        siblings = {item.id for item in ast.walk(parent) if isinstance(parent, ast.Subscript) and isinstance(item, ast.Name)}
        for other in sorted((header | set(parameters)) & known - {node.id} - siblings):
            yield function.replace("wrong_variable", node, other)


def is_simple(node: ast.expr) -> bool:
    """Can be moved without parentheses."""
    return isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Call)


def swapped(function: Function) -> Iterator[Mutation]:
    for node in function.nodes:
        pair: tuple[ast.expr, ast.expr] | None = None
        if isinstance(node, ast.Call) and len(node.args) >= 2:
            name = (
                node.func.id
                if isinstance(node.func, ast.Name)
                else node.func.attr
                if isinstance(node.func, ast.Attribute)
                else ""
            )
            arguments = (node.args[0], node.args[1])
            pair = None if name in ORDERLESS_CALLS or any(isinstance(item, ast.Constant) for item in arguments) else arguments
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.Div | ast.Mod | ast.FloorDiv):
            pair = (node.left, node.right) if is_simple(node.left) and is_simple(node.right) else None
        elif isinstance(node, ast.IfExp):
            pair = (node.body, node.orelse)
        if pair is None or function.text(pair[0]) == function.text(pair[1]):
            continue
        (start, left_end), (right_start, end) = function.span(pair[0]), function.span(pair[1])
        text = function.text(pair[1]) + function.source[left_end:right_start] + function.text(pair[0])
        yield Mutation("swapped", start, end, text)


def calls(function: Function) -> Iterator[Mutation]:
    """A call forgotten, another function of the same family, an option lost."""
    for node in function.nodes:
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in DROPPABLE_CALLS and len(node.args) == 1:
            if is_simple(node.args[0]) or isinstance(node.args[0], ast.ListComp):
                yield function.replace("dropped_call", node, function.text(node.args[0]))
            elif isinstance(node.args[0], ast.BinOp):
                yield function.replace("dropped_call", node, f"({function.text(node.args[0])})")
        if isinstance(node.func, ast.Attribute) and node.func.attr in DROPPABLE_METHODS and not node.args:
            yield function.replace("dropped_call", node, function.text(node.func.value))
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name in CONFUSED:
            end = function.span(node.func)[1]
            yield Mutation("wrong_function", end - len(name), end, CONFUSED[name])
        if node.keywords and node.args:
            last = node.keywords[-1]
            before = [*node.args, *(keyword.value for keyword in node.keywords[:-1])][-1]
            yield Mutation("dropped_option", function.span(before)[1], function.span(last)[1], "")
        if name == "get" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            yield function.replace("default", node.args[1], "1" if node.args[1].value == 0 else "0")


OPERATORS = (comparisons, booleans, arithmetic, indexes, constants, missing_lines, moved_returns, jumps, names, swapped, calls)


def proposals(source: str, name: str) -> Iterator[Mutation]:
    """Every edit the operators can think of in the function `name`, in a fixed order; some repeat, some are no Python."""
    function = Function(source, name)
    for operator in OPERATORS:
        yield from operator(function)


def mutations(source: str, name: str) -> list[Mutation]:
    """The proposals that make another program, each text once."""
    unchanged = ast.dump(ast.parse(source))
    found: dict[str, Mutation] = {}
    for mutation in proposals(source, name):
        text = mutation.apply(source)
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        if ast.dump(tree) != unchanged:
            found.setdefault(text, mutation)
    return list(found.values())
