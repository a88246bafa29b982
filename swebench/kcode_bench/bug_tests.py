"""The test file of one problem: its `check(candidate)` taken apart into one small test per assertion."""

from __future__ import annotations

import ast
import re
import textwrap

from kcode_bench.problems import Problem

UNITTEST_METHODS: dict[type[ast.cmpop], str] = {ast.Eq: "assertEqual", ast.Lt: "assertLess"}


def names_in(node: ast.AST) -> set[str]:
    return {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}


def segment(text: str, node: ast.AST) -> str:
    found = ast.get_source_segment(text, node)
    assert found is not None, "nodes of parsed text have positions"
    return found


def statement(text: str, node: ast.stmt) -> str:
    """The statement's own lines without their common indent."""
    return textwrap.dedent(" " * node.col_offset + segment(text, node))


def assertion(text: str, node: ast.Assert) -> str:
    """`assert a == b` as assertEqual, so that plain unittest shows both values too; others stay as they are."""
    test = node.test
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        method = UNITTEST_METHODS.get(type(test.ops[0]))
        if method:
            return f"self.{method}({segment(text, test.left)}, {segment(text, test.comparators[0])})"
    return f"assert {segment(text, test)}"


def is_random(node: ast.stmt) -> bool:
    """Draws from the unseeded global generator: another test on every run."""
    return bool(names_in(node) & {"random", "randint", "choice"})


def setup_for(node: ast.stmt, before: list[ast.stmt]) -> list[ast.stmt]:
    """Those of the statements before that `node` depends on, in order."""
    wanted = names_in(node)
    needed: list[ast.stmt] = []
    for item in reversed(before):
        if names_in(item) & wanted:
            needed.insert(0, item)
            wanted |= names_in(item)
    return needed


def test_bodies(problem: Problem) -> tuple[list[str], list[str]]:
    """The import lines the tests need, and the body of each test."""
    text = problem.check
    check = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == "check")
    imports: list[str] = []
    before: list[ast.stmt] = []
    bodies: list[str] = []
    for node in check.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(segment(text, node))
        elif isinstance(node, ast.Assign):
            before.append(node)
        elif "candidate" in names_in(node):
            setup = setup_for(node, before)
            if any(is_random(item) and "Random(" not in segment(text, item) for item in (*setup, node)):
                continue
            last = assertion(text, node) if isinstance(node, ast.Assert) else statement(text, node)
            bodies.append("\n".join([*(statement(text, item) for item in setup), last]))
    used = "\n".join(bodies)
    return [line for line in imports if re.search(rf"\b{line.split()[1]}\b", used)], bodies


def test_count(problem: Problem) -> int:
    return len(test_bodies(problem)[1])


def test_file(problem: Problem) -> str:
    """A unittest module that pytest runs as well; importing it has no effect."""
    imports, bodies = test_bodies(problem)
    defined = {node.name for node in ast.parse(problem.source).body if isinstance(node, ast.FunctionDef)}
    used = {problem.entry_point} | {name for body in bodies for name in defined & names_in(ast.parse(body))}
    words = re.split(r"_|(?<=[a-z])(?=[A-Z])", problem.entry_point)
    methods = [
        f"    def test_case_{number}(self):\n" + textwrap.indent(re.sub(r"\bcandidate\b", problem.entry_point, body), " " * 8)
        for number, body in enumerate(bodies, 1)
    ]
    return (
        "\n".join(sorted({"import unittest", *imports}))
        + f"\n\nfrom {problem.entry_point} import {', '.join(sorted(used))}\n\n\n"
        + f"class {''.join(word[:1].upper() + word[1:] for word in words)}Test(unittest.TestCase):\n"
        + "\n\n".join(methods)
        + '\n\n\nif __name__ == "__main__":\n    unittest.main()\n'
    )
