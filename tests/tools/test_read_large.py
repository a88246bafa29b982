"""`read` on files too large to be read whole: the lines asked for, and no more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from kcode.tools.tool import Outcome

Call = Callable[..., Awaitable[Outcome]]


async def test_a_range_of_a_huge_file_is_read_and_the_whole_refused(call: Call, workspace: Path) -> None:
    common = b"x" * 49 + b"\n"
    with (workspace / "big.log").open("wb") as file:
        file.write(common * 1_999_999 + b"found\n" + common * 400_000)
    whole = await call("read", path="big.log")
    assert whole.is_error
    assert "big.log has 114.4 MB, more than 10 MB; read parts of it with offset and limit" in whole.text
    part = await call("read", path="big.log", offset=2_000_000, limit=2)
    assert part.text == (
        f"2000000\tfound\n2000001\t{'x' * 49}\n[lines 2000000-2000001 of a file of 114.4 MB; go on with offset=2000002]"
    )
    end = await call("read", path="big.log", offset=2_400_000, limit=10)
    assert end.text == f"2400000\t{'x' * 49}\n[lines 2400000-2400000 of a file of 114.4 MB; it ends here]"
    past = await call("read", path="big.log", offset=2_400_001)
    assert past.is_error
    assert "offset 2400001 is past the end of big.log (114.4 MB)" in past.text


async def test_a_huge_binary_file_and_a_huge_line(call: Call, workspace: Path) -> None:
    with (workspace / "sparse").open("wb") as file:
        file.truncate(200 << 20)
    assert "sparse is a binary file" in (await call("read", path="sparse", offset=2)).text
    (workspace / "line.json").write_text("x" * (12 << 20))
    part = await call("read", path="line.json", limit=1)
    assert part.text.startswith("1\t" + "x" * 2000 + "…")
    assert len(part.text) < 2200
