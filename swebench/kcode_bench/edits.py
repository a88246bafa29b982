"""The edit ladder on a corpus of edits with known outcomes: `make bench-edits`.

Every case is a real place of a real file with a change, got wrong in one way that models get it wrong. A repairable one has
one right file; any other one must be refused, and the refusal must show the lines where the edit belongs. The corpus is made
anew in each run, always the same for the same sources. A sample of it also goes through the tool and the sandbox.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kcode.tools.refusal import Refusal
from kcode.tools.replacing import edit
from kcode.tools.str_replace import StrReplaceArguments, StrReplaceTool
from kcode.tools.textfile import ReadFiles, decode, digest
from kcode_bench.edit_case import Case, Place, Source, pick, sources, unit_of
from kcode_bench.edit_refusals import REFUSED, in_order
from kcode_bench.edit_repairable import REPAIRABLE, Recipe, is_regular
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.environment import clean_environment
from kcode_sandbox.policy import Policy

PER_SHARE = 16
SANDBOXED = 60
NUMBERED_LINE = re.compile(r"^(\d+)\t", re.MULTILINE)
LISTED = re.compile(r"lines ([\d, ]+)")


@dataclass(frozen=True, slots=True)
class Judged:
    """`problem` is empty when all is right; a repairable edit that was refused is no problem, but not `applied`."""

    case: Case
    applied: bool
    problem: str = ""


def corpus(per_share: int = PER_SHARE) -> list[Case]:
    """The same cases each time; `per_share` scales their number."""
    found: list[Case] = []
    all_sources = sources()
    for recipe in (*REPAIRABLE, *REFUSED):
        for number in range(recipe.share * per_share):
            rng = random.Random(f"{recipe.make.__name__}/{number}")
            place = place_for(recipe, all_sources, rng)
            if place is not None:
                found.append(recipe.make(place, rng))
    return found


def place_for(recipe: Recipe, all_sources: Sequence[Source], rng: random.Random) -> Place | None:
    for _ in range(40):
        source = rng.choice(all_sources)
        regular = is_regular(unit_of(source)) if recipe.regular else bool
        place = pick(source, rng, in_order(recipe.accept, regular))
        if place is not None:
            return place
    return None


def outcome(case: Case) -> bytes | str:
    """The bytes after the edit, or the refusal's text, as the tool would give them."""
    try:
        return edit(decode(case.data, "file"), file_name(case), case.old, case.new, replace_all=case.replace_all).content.encode()
    except Refusal as refusal:
        return str(refusal)


def file_name(case: Case) -> str:
    """With the suffix of the source, by which the language is known."""
    return "file" + PurePosixPath(case.name.rpartition(":")[0]).suffix


def judge(case: Case, result: bytes | str) -> Judged:
    if isinstance(result, bytes):
        if case.expected is None:
            return Judged(case, True, "applied, though it cannot be told where or how")
        return Judged(case, True, "" if result == case.expected else "applied wrongly")
    if case.expected is not None:
        return Judged(case, False)
    return Judged(case, False, region_problem(case, result))


def region_problem(case: Case, text: str) -> str:
    """What the refusal does not show of the lines where the edit belongs."""
    shown = {int(number) for number in NUMBERED_LINE.findall(text)}
    listed = {int(number) for found in LISTED.findall(text) for number in found.replace(",", " ").split()}
    missing = [line for line in case.region if line not in shown] + [line for line in case.places if line not in listed]
    return f"refused without lines {missing}" if missing else ""


async def through_the_tool(cases: Sequence[Case]) -> list[Judged]:
    """The same by `str_replace` on files in a sandbox; what the model saw before the edit is noted as read."""
    judged: list[Judged] = []
    with tempfile.TemporaryDirectory(prefix="kcode-edits-") as folder:
        workspace = Path(folder)
        sandbox = open_sandbox(Policy(workspace, environment=tuple(clean_environment(os.environ).items())))
        await sandbox.start()
        try:
            for number, case in enumerate(cases):
                files = ReadFiles()
                tool = StrReplaceTool(sandbox, files)
                path = workspace / f"{number}{file_name(case)}"
                path.write_bytes(case.data)
                files.note(str(path), digest(case.data if case.seen is None else case.seen))
                arguments = StrReplaceArguments(path=path.name, old=case.old, new=case.new, replace_all=case.replace_all)
                result = await tool.run(arguments, lambda text: None)
                if result.is_error and path.read_bytes() != case.data:
                    judged.append(Judged(case, True, "refused, yet the file changed"))
                else:
                    judged.append(judge(case, result.text if result.is_error else path.read_bytes()))
        finally:
            await sandbox.close()
    return judged


def report(judged: Sequence[Judged]) -> dict[str, object]:
    """The figures, and on stderr every problem and each kind with the share of its repairable edits that were applied."""
    by_kind: dict[str, list[Judged]] = {}
    for result in judged:
        by_kind.setdefault(f"{result.case.kind}, {'repairable' if result.case.expected is not None else 'to refuse'}", []).append(
            result
        )
    for kind, results in sorted(by_kind.items()):
        applied = sum(result.applied for result in results)
        print(f"{kind:36} {len(results):5} cases {applied:5} applied", file=sys.stderr)
    for result in judged:
        if result.problem:
            print(f"{result.case.kind} {result.case.name}: {result.problem}", file=sys.stderr)
    repairable = [result for result in judged if result.case.expected is not None]
    found = [result.problem for result in judged if result.problem]
    problems = Counter("region" if problem.startswith("refused without") else "wrong" for problem in found)
    return {
        "cases": len(judged),
        "wrong": problems["wrong"],
        "applied_share": round(sum(result.applied for result in repairable) / max(len(repairable), 1), 4),
        "repairable": len(repairable),
        "refusals": len(judged) - len(repairable),
        "refusals_without_region": problems["region"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-share", type=int, default=PER_SHARE, help="cases for each weight of a kind (default %(default)s)")
    parser.add_argument("--sandboxed", type=int, default=SANDBOXED, help="cases that also go through the sandbox")
    given = parser.parse_args()
    started = time.monotonic()
    cases = corpus(given.per_share)
    pure = [judge(case, outcome(case)) for case in cases if case.seen is None]
    stale = [case for case in cases if case.seen is not None]
    sample = random.Random(0).sample(cases, min(given.sandboxed, len(cases)))
    in_sandbox = asyncio.run(through_the_tool([*stale, *sample]))
    figures = report([*pure, *in_sandbox[: len(stale)]])
    again = in_sandbox[len(stale) :]
    figures |= {
        "sandboxed": len(again),
        "sandboxed_wrong": sum(bool(result.problem) for result in again),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(figures))
    sys.exit(1 if figures["wrong"] or figures["refusals_without_region"] or figures["sandboxed_wrong"] else 0)


if __name__ == "__main__":
    main()
