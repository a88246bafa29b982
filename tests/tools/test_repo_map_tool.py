"""The `repo_map` tool: languages, order, budget, and that only changed files are read again. Through a real sandbox."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kcode.tools.repoindex import RepoIndex, rank
from kcode.tools.symbols import symbols
from kcode.tools.syntax import GRAMMARS, SUFFIXES, faults
from kcode.tools.tool import Outcome
from kcode_sandbox.sandbox import Sandbox

Call = Callable[..., Awaitable[Outcome]]

# One file per grammar, and the qualified names of what it defines.
LANGUAGES = {
    "a.py": (
        "class Cart:\n    def total(self):\n        return tax(1)\n\n\ndef tax(n):\n    return n\n",
        "Cart Cart.total tax",
    ),
    "a.js": (
        "class Cart {\n  total() { return 1; }\n}\nconst tax = (n) => n;\n",
        "Cart Cart.total tax",
    ),
    "a.ts": (
        "interface Priced { price: number }\nexport function tax(n: number): number { return n; }\n",
        "Priced tax",
    ),
    "a.tsx": (
        "export function Page() { return <p>hello</p>; }\nenum Kind { A }\n",
        "Page Kind",
    ),
    "a.go": (
        "package shop\n\ntype Cart struct{}\n\nfunc (c *Cart) Total() int { return 1 }\n\nfunc tax() {}\n",
        "Cart Cart.Total tax",
    ),
    "a.rs": (
        "struct Cart;\nimpl Cart { fn total(&self) -> i32 { 1 } }\nmod inner { fn tax() {} }\n",
        "Cart Cart.total inner inner.tax",
    ),
    "A.java": (
        "class Cart {\n  Cart() {}\n  int total() { return 1; }\n}\n",
        "Cart Cart.Cart Cart.total",
    ),
    "a.c": (
        "struct cart { int n; };\nstatic int total(struct cart *c) { return c->n; }\n",
        "cart total",
    ),
    "a.cpp": (
        "namespace shop {\nclass Cart { int total() { return 1; } };\n}\nint shop::tax() { return 2; }\n",
        "shop shop.Cart shop.Cart.total shop.tax",
    ),
    "a.sh": (
        "total() {\n  echo 1\n}\nfunction tax { echo 2; }\n",
        "total tax",
    ),
    "a.rb": (
        "module Shop\n  class Cart\n    def total(x)\n    end\n    def self.make\n    end\n  end\nend\n",
        "Shop Shop.Cart Shop.Cart.total Shop.Cart.make",
    ),
    "a.php": (
        "<?php\nfunction tax($n) { return $n; }\nclass Cart { public function total() {} }\ntrait Sells {}\n",
        "tax Cart Cart.total Sells",
    ),
    "a.cs": (
        "namespace Shop {\n  class Cart { public int Total() { return 1; } }\n  struct P {}\n}\n",
        "Shop Shop.Cart Shop.Cart.Total Shop.P",
    ),
    "a.kt": (
        "fun tax(n: Int): Int = n\nclass Cart(val n: Int) {\n  fun total(): Int { return 1 }\n}\nobject Registry {}\n",
        "tax Cart Cart.total Registry",
    ),
    "a.lua": (
        "local M = {}\nfunction M.tax(n) return n end\nlocal function net() end\nfunction M:total() end\n",
        "M.tax net M.total",
    ),
    "a.scala": (
        "object Registry { def add(x: Int): Int = x }\nclass Cart { def total: Int = 1 }\ntrait Priced\n",
        "Registry Registry.add Cart Cart.total Priced",
    ),
    "a.swift": (
        "func tax(n: Int) -> Int { return n }\n"
        "class Cart {\n"
        "  init() {}\n"
        "  func total() -> Int { return 1 }\n"
        "}\n"
        "protocol Priced { func price() -> Int }\n",
        "tax Cart Cart.init Cart.total Priced Priced.price",
    ),
}


@pytest.mark.parametrize("path", LANGUAGES)
def test_definitions_are_found_in_every_language(path: str) -> None:
    source, expected = LANGUAGES[path]
    assert [symbol.qualified for symbol in symbols(path, source)] == expected.split()
    assert faults(path, source) == ()


def test_every_grammar_has_its_example() -> None:
    assert {SUFFIXES[Path(path).suffix] for path in LANGUAGES} == set(GRAMMARS)
    assert len(GRAMMARS) >= 15


@pytest.fixture
def shop(workspace: Path) -> Path:
    files = {
        "shop/prices.py": "def gross(net):\n    return net\n\n\ndef rarely():\n    def inner(): ...\n",
        "shop/cart.py": "from shop.prices import gross\n\n\nclass Cart:\n    def total(self) -> int:\n        return gross(1)\n",
        "shop/order.py": "from shop.prices import gross\n\n\ndef place(order):\n    return gross(order)\n",
        "web/show.py": "from shop.cart import Cart\n\n\ndef show():\n    return Cart().total()\n",
        "tests/test_prices.py": "from shop.prices import gross, rarely\n\n\ndef test_gross():\n    assert gross(1)\n",
        "notes.md": "gross gross gross\n",
    }
    for name, content in files.items():
        (workspace / name).parent.mkdir(exist_ok=True)
        (workspace / name).write_text(content)
    return workspace


async def test_what_much_code_uses_comes_first_and_a_test_last(call: Call, shop: Path) -> None:
    text = (await call("repo_map")).text
    assert text.startswith(
        "shop/prices.py\n  1-2 def gross(net)\n  5-6 def rarely()\n"
        "shop/cart.py\n  4-6 class Cart\n    5-6 def total(self) -> int\n"
    )
    assert text.endswith("tests/test_prices.py\n  4-5 def test_gross()")
    assert "inner" not in text
    assert "notes" not in text


@pytest.mark.parametrize("about", ["place", "shop/order.py", "In order.py the tax is wrong", "order"])
async def test_what_the_task_is_about_comes_first(about: str, call: Call, shop: Path) -> None:
    assert (await call("repo_map", about=about)).text.startswith("shop/order.py\n  4-5 def place(order)\n")


async def test_a_folder_and_what_cannot_be_mapped(call: Call, shop: Path) -> None:
    assert (await call("repo_map", path="web")).text == "web/show.py\n  4-5 def show()"
    assert (await call("repo_map", path="none")).text.startswith("There are no source files below none")


async def test_the_map_keeps_to_its_tokens_and_says_what_it_left_out(call: Call, workspace: Path) -> None:
    for number in range(200):
        (workspace / f"module_{number:03}.py").write_text(f"def work_{number}():\n    return {number}\n")
    text = (await call("repo_map", max_tokens=100)).text
    body, _, notice = text.rpartition("\n")
    assert len(body) <= 300
    assert notice == f"[{200 - body.count('.py')} more files; name a path or words in about, or raise max_tokens]"


async def test_only_changed_files_are_read_again(sandbox: Sandbox, shop: Path) -> None:
    index = RepoIndex(sandbox)
    files = await index.update(print)
    assert (index.parsed, len(files)) == (5, 5)
    graph = index.graph()
    await index.update(print)
    assert index.parsed == 0
    assert index.graph() is graph
    (shop / "shop/order.py").write_text("def order_all():\n    return 1\n")
    os.utime(shop / "shop/order.py", ns=(1, 1))
    (shop / "web/show.py").unlink()
    files = await index.update(print)
    assert index.parsed == 1
    assert [entry.name for entry in files["shop/order.py"].defined] == ["order_all"]
    assert "web/show.py" not in rank(files, index.graph(), frozenset())


@pytest.mark.slow
async def test_the_second_call_on_5000_files_takes_less_than_a_second(call: Call, workspace: Path) -> None:
    for number in range(5000):
        folder = workspace / f"part_{number // 100}"
        folder.mkdir(exist_ok=True)
        uses = "\n".join(f"    work_{(number * 7 + step) % 5000}(value_{step})" for step in range(20))
        (folder / f"module_{number}.py").write_text(f"def work_{number}(value):\n{uses}\n    return {number}\n")
    await call("repo_map")
    took: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        await call("repo_map", about="work_77")
        took.append(time.perf_counter() - began)
    assert min(took) < 1
