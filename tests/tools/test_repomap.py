"""The map of a repository, through a real sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcode.repomap import find_definition, repo_map
from kcode_sandbox.sandbox import Sandbox

FILES = {
    "shop/prices.py": (
        "RATE = 7\n\n\ndef gross(net):\n    return net * (100 + RATE) // 100\n\n\ndef rarely():\n    def inner(): ...\n"
    ),
    "shop/cart.py": "from shop.prices import gross\n\n\nclass Cart:\n    def total(self) -> int:\n        return gross(1)\n",
    "shop/order.py": "from shop.prices import gross\n\n\ndef place(order):\n    return gross(order)\n",
    "shop/web.py": "from shop.cart import Cart\n\n\ndef show():\n    return Cart().total()\n",
    "tests/test_prices.py": (
        "from shop.prices import gross, rarely\n\n\ndef test_gross():\n    assert gross(100) == 107\n    rarely()\n"
    ),
    "ui/app.js": "export function start() {\n  return 1;\n}\n",
    "README.md": "gross gross gross\n",
}


@pytest.fixture
def project(workspace: Path) -> Path:
    for name, content in FILES.items():
        (workspace / name).parent.mkdir(exist_ok=True)
        (workspace / name).write_text(content)
    return workspace


async def test_what_many_use_comes_first_and_tests_last(sandbox: Sandbox, project: Path) -> None:
    text = await repo_map(sandbox, set(), 2000)
    assert text.startswith(
        "shop/prices.py\n  4-5 def gross(net)\n  8-9 def rarely()\n"
        "shop/cart.py\n  4-6 class Cart\n    5-6 def total(self) -> int\n"
    )
    assert "ui/app.js\n  1-3 export function start()" in text
    assert "inner" not in text
    assert "README" not in text


@pytest.mark.parametrize("word", ["shop/order.py", "order.py", "order", "place"])
async def test_what_the_task_mentions_comes_first(word: str, sandbox: Sandbox, project: Path) -> None:
    assert (await repo_map(sandbox, {word}, 2000)).startswith("shop/order.py\n  4-5 def place(order)\n")


async def test_the_map_keeps_to_its_size(sandbox: Sandbox, project: Path) -> None:
    full = await repo_map(sandbox, set(), 10_000)
    for limit in (0, 10, 50, 100, 200, len(full)):
        assert len(await repo_map(sandbox, set(), limit)) <= limit
    # Names of files are worth more than nothing.
    assert await repo_map(sandbox, set(), 40) == "shop/prices.py\nshop/cart.py"


async def test_definitions_are_found_by_name(sandbox: Sandbox, project: Path) -> None:
    (found,) = await find_definition(sandbox, "Cart.total")
    assert (found.path, found.symbol.start_line) == ("shop/cart.py", 5)
    assert found.code == "def total(self) -> int:\n        return gross(1)"
    assert [entry.path for entry in await find_definition(sandbox, "total")] == ["shop/cart.py"]
    assert await find_definition(sandbox, "nothing") == ()


async def test_an_empty_repository_has_an_empty_map(sandbox: Sandbox) -> None:
    assert await repo_map(sandbox, {"x"}, 1000) == ""
