"""The corpus of edits: a slice of what `make bench-edits` runs, and what the corpus promises of itself."""

from __future__ import annotations

import random

from kcode_bench.edit_refusals import REFUSED
from kcode_bench.edit_repairable import REPAIRABLE
from kcode_bench.edits import PER_SHARE, corpus, judge, outcome, report, through_the_tool


def test_no_edit_of_a_slice_goes_wrong_and_every_refusal_shows_the_region() -> None:
    judged = [judge(case, outcome(case)) for case in corpus(3) if case.seen is None]
    assert [(result.case.kind, result.case.name, result.problem) for result in judged if result.problem] == []
    figures = report(judged)
    assert isinstance(figures["applied_share"], float)
    assert figures["applied_share"] >= 0.95
    assert len(judged) > 250


async def test_a_sample_goes_the_same_way_through_the_tool_and_the_sandbox() -> None:
    cases = corpus(1)
    stale = [case for case in cases if case.seen is not None]
    assert len(stale) == 3
    judged = await through_the_tool([*stale, *random.Random(1).sample(cases, 25)])
    assert [(result.case.kind, result.case.name, result.problem) for result in judged if result.problem] == []


def test_the_corpus_is_the_same_each_time_and_large_enough() -> None:
    assert corpus(1) == corpus(1)
    assert sum(recipe.share for recipe in (*REPAIRABLE, *REFUSED)) * PER_SHARE > 1500


def test_the_judge_tells_wrong_from_right() -> None:
    cases = corpus(1)
    repairable = next(case for case in cases if case.expected is not None)
    to_refuse = next(case for case in cases if case.region and case.seen is None)
    assert judge(repairable, repairable.data).problem == "applied wrongly"
    assert judge(to_refuse, to_refuse.data).problem.startswith("applied, though")
    assert judge(to_refuse, "`old` is not in file.").problem.startswith("refused without lines")
    assert not judge(repairable, "`old` is not in file.").applied
