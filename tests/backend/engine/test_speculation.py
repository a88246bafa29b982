"""Speculation: an answer is what it is without drafts, whatever is drafted; drafts are used where they pay, and nowhere else."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcode_backend.engine.engine import Engine
from kcode_backend.engine.request import Event, Failed, Finished, Generation, Prefilled, Sampled, SamplingParams
from kcode_backend.engine.speculative import MAX_DRAFT, Draft, Drafter, RowCost, best_length
from kcode_backend.kernels import reference
from kcode_backend.kv.cache import KVCache
from kcode_backend.models.load import load
from tests.backend.engine.test_engine import GREEDY, TOKENIZER, VOCAB, Bench, Run, greedy, logits_after

if TYPE_CHECKING:
    from tests.backend.conftest import TinyModel, WriteTiny

END = TOKENIZER.special_id("<|im_end|>")


class FreeRows(RowCost):
    """A machine on which a pass takes as long with many rows as with one."""

    def estimate(self, rows: int) -> float:
        return 1.0 + rows * 1e-6


class DearRows(RowCost):
    """A machine on which every row takes as long as a pass of its own."""

    def estimate(self, rows: int) -> float:
        return float(rows)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(blocks=200, cost=FreeRows())
    yield bench
    bench.network.gate.set()
    bench.engine.close()


def assert_cache_holds_what_it_says(bench: Bench) -> None:
    """The fake network writes ids as keys: every block that can be found has the keys of its tokens."""
    index = bench.engine.pool.index
    keys, _ = reference.read_kv(bench.kv.layers[0])
    known = [block for block in range(bench.engine.pool.blocks) if block in index]
    assert known
    for block in known:
        tokens = index.entry(block).tokens
        assert keys[block, : len(tokens), 0, 0].tolist() == [float(token) for token in tokens]


def test_right_draft_is_taken_in_few_passes(bench: Bench) -> None:
    prompt = list(range(11))
    answer = greedy(prompt, 40)
    run = bench.ask(prompt, max_tokens=40, draft=tuple(answer))
    run.wait()
    assert run.ids == answer
    assert run.accepted == run.drafted > 30
    # The prompt, then passes of one token and a draft.
    assert len(bench.network.passes) <= 2 + 40 // MAX_DRAFT + 1


def test_draft_with_an_edit_is_taken_up_again_behind_it(bench: Bench) -> None:
    prompt = list(range(11))
    answer = greedy(prompt, 60)
    old = [*answer[:20], 7, 7, 7, *answer[22:]]
    run = bench.ask(prompt, max_tokens=60, draft=tuple(old))
    run.wait()
    assert run.ids == answer
    assert run.accepted > 45


def test_answer_that_repeats_the_prompt_is_drafted_from_it() -> None:
    bench = Bench(blocks=200, cost=FreeRows())
    period = [3, 1, 4, 1, 5]
    # The hashed network never repeats itself; bound to a period it has to.
    run = bench.ask(period * 4, max_tokens=60, constraint=Periodic(period))
    run.wait()
    assert run.ids == (period * 12)[:60]
    assert run.accepted > 40
    bench.engine.close()


class Periodic:
    """Allows only the next token of a period."""

    def __init__(self, period: list[int]) -> None:
        self._period = period
        self._count = 0

    def mask(self) -> np.ndarray:
        mask = np.zeros(VOCAB, dtype=bool)
        mask[self._period[self._count % len(self._period)]] = True
        return mask

    def accept(self, token: int) -> None:
        assert token == self._period[self._count % len(self._period)], "a token was accepted that the mask forbids"
        self._count += 1

    def forced(self) -> list[int]:
        return []

    def finished(self) -> bool:
        return False


class Forcing:
    """Allows ids below 200, and forces two tokens after every third."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self._free = 0

    def mask(self) -> np.ndarray:
        return np.arange(VOCAB) < 200

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def forced(self) -> list[int]:
        self._free += 1
        return [201, 202] if self._free % 3 == 0 else []

    def finished(self) -> bool:
        return len(self.accepted) >= 30


def edited(answer: list[int], edits: list[tuple[int, str, int]]) -> tuple[int, ...]:
    """A text that is like the answer."""
    text = list(answer)
    for at, kind, token in edits:
        place = at % (len(text) + 1)
        text[place : place + (kind != "insert")] = [] if kind == "delete" else [token]
    return tuple(text)


EDITS = st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["insert", "delete", "change"]), st.integers(0, 250)), max_size=6)
SAMPLINGS = st.sampled_from(
    [
        GREEDY,
        SamplingParams(temperature=0, repetition_penalty=1.5),
        SamplingParams(temperature=0.3, seed=5),
        SamplingParams(temperature=1.0, top_k=5, top_p=0.9, seed=9),
        SamplingParams(temperature=0.8, min_p=0.05, repetition_penalty=1.2, seed=2),
    ]
)


def outcome(bench: Bench, prompt: list[int], **changes: object) -> tuple[list[int], Finished]:
    run = bench.ask(prompt, **changes)
    return run.ids, replace(run.wait(), prefill_s=0, decode_s=0, cached_tokens=0)


@settings(max_examples=25, deadline=None)
@given(
    edits=EDITS,
    sampling=SAMPLINGS,
    count=st.integers(1, 40),
    stops=st.booleans(),
    forcing=st.booleans(),
    banned=st.lists(st.integers(0, 250), max_size=20),
)
def test_answer_is_the_same_with_any_draft(
    edits: list[tuple[int, str, int]], sampling: SamplingParams, count: int, stops: bool, forcing: bool, banned: list[int]
) -> None:
    bench = Bench(blocks=200, cost=FreeRows())
    prompt = [5, 6, 7, count]
    options: dict[str, object] = {"sampling": sampling, "max_tokens": count, "banned": tuple(banned)}
    plain = bench.ask(prompt, **options, speculate=False, constraint=Forcing() if forcing else None)
    plain.wait()
    if stops:
        options["stop_ids"] = frozenset(plain.ids[count // 2 : count // 2 + 1])
    expected = outcome(bench, prompt, **options, speculate=False, constraint=Forcing() if forcing else None)
    constraint = Forcing() if forcing else None
    drafted = outcome(bench, prompt, **options, draft=edited(plain.ids, edits), constraint=constraint)
    assert drafted == expected
    if constraint:
        ended = stops and expected[1].reason == "stop" and expected[0][-1] == plain.ids[count // 2]
        # The end itself is not the constraint's business.
        assert constraint.accepted == expected[0][: len(expected[0]) - ended], "the constraint saw a token that was not drawn"
    bench.settle()
    assert bench.engine.pool.used == 0
    assert_cache_holds_what_it_says(bench)
    bench.engine.close()


@settings(max_examples=10, deadline=None)
@given(
    plan=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30), EDITS, st.booleans()), min_size=2, max_size=7),
    blocks=st.integers(20, 60),
)
def test_drafts_survive_preemption_and_cancelling(
    plan: list[tuple[int, int, list[tuple[int, str, int]], bool]], blocks: int
) -> None:
    bench = Bench(blocks=blocks, block_size=4, cost=FreeRows())
    runs: list[tuple[Run, list[int], bool]] = []
    for length, count, edits, cancelled in plan:
        prompt = [length % 7, *range(length)]
        answer = greedy(prompt, count)
        runs.append((bench.ask(prompt, max_tokens=count, draft=edited(answer, edits)), answer, cancelled))
    for run, _, cancelled in runs:
        if cancelled:
            bench.engine.cancel(run.ticket)
    for run, answer, cancelled in runs:
        if not cancelled:
            run.wait()
            assert run.ids == answer
    bench.settle()
    assert bench.engine.pool.used == 0
    bench.engine.close()


def test_rejected_tokens_are_never_found_in_the_cache(bench: Bench) -> None:
    prompt = list(range(10))
    answer = greedy(prompt, 24)
    wrong = tuple(token if place % 3 else (token + 1) % 250 for place, token in enumerate(answer))
    run = bench.ask(prompt, max_tokens=24, draft=wrong)
    run.wait()
    assert run.drafted > run.accepted
    bench.settle()
    assert_cache_holds_what_it_says(bench)
    branch = [*prompt, *wrong[:12], 9]
    other = bench.ask(branch)
    same = next(at for at, pair in enumerate(zip(answer, wrong, strict=True)) if pair[0] != pair[1])
    assert other.wait().cached_tokens == len(prompt) + same
    assert other.ids == greedy(branch, 8)


def test_sampled_tokens_follow_the_distribution_with_drafts(bench: Bench) -> None:
    """Chi-square over answers of which all but the first token are drawn in the rows of a draft that is sometimes right."""
    params = SamplingParams(temperature=1.0, top_k=4)
    likely = tuple(greedy([1, 2], 4))
    draws, together = 2000, 8
    counts: dict[tuple[int, ...], int] = {}
    accepted = wrong = 0
    for first in range(0, draws, together):
        samplings = [replace(params, seed=seed) for seed in range(first, first + together)]
        for run in [bench.ask([1, 2], sampling=sampling, max_tokens=4, draft=likely) for sampling in samplings]:
            run.wait()
            counts[tuple(run.ids)] = counts.get(tuple(run.ids), 0) + 1
            accepted += run.accepted
            wrong += run.drafted - run.accepted
    assert accepted > draws / 8, "the draft was hardly ever right"
    assert wrong > draws / 8, "the draft was hardly ever wrong"
    expected = chances([1, 2], params, 4)
    assert set(counts) <= set(expected)
    # Rare outcomes are taken together.
    common = [ids for ids, chance in expected.items() if chance * draws >= 8]
    observed = np.array([counts.get(ids, 0) for ids in common] + [draws - sum(counts.get(ids, 0) for ids in common)])
    wanted = np.array([expected[ids] * draws for ids in common] + [draws * (1 - sum(expected[ids] for ids in common))])
    square = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(common)
    assert square < freedom + 4 * np.sqrt(2 * freedom), f"chi-square {square:.1f} for {freedom} degrees of freedom"


def chances(prompt: list[int], params: SamplingParams, count: int) -> dict[tuple[int, ...], float]:
    """The probability of every answer of `count` tokens, by definition."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(count):
        longer: dict[tuple[int, ...], float] = {}
        for ids, before in found.items():
            scaled = logits_after([*prompt, *ids]).astype(np.float64) / params.temperature
            kept = np.argsort(-scaled)[: params.top_k]
            weights = np.exp(scaled[kept] - scaled[kept[0]])
            for token, weight in zip(kept.tolist(), weights / weights.sum(), strict=True):
                longer[*ids, token] = before * float(weight)
        found = longer
    return found


def test_seed_gives_the_same_answer_with_and_without_drafts(bench: Bench) -> None:
    for seed in range(5):
        params = SamplingParams(temperature=1.0, seed=seed)
        plain = bench.ask([8, 9], sampling=params, max_tokens=30, speculate=False)
        plain.wait()
        again = bench.ask([8, 9], sampling=params, max_tokens=30, draft=tuple(plain.ids))
        again.wait()
        assert again.ids == plain.ids
        assert (plain.drafted, again.accepted > 10) == (0, True)


def test_nothing_is_drafted_where_rows_are_dear() -> None:
    bench = Bench(blocks=200, cost=DearRows())
    answer = greedy([4, 5], 30)
    run = bench.ask([4, 5], max_tokens=30, draft=tuple(answer))
    run.wait()
    assert run.ids == answer
    assert run.drafted == 0
    bench.engine.close()


def test_real_layers_say_the_same_with_and_without_drafts(tiny: TinyModel, write_tiny: WriteTiny) -> None:
    """Tiny random transformers, whose greedy answers run in circles: that is what is drafted."""
    for seed, quant in ((1, "F32"), (2, "Q8_0")):
        model = load(write_tiny(replace(tiny, seed=seed, quant=quant, context=512, hidden=64, mlp=96)))
        engine = Engine(model, KVCache.allocate(model.config, 100, 8), 512, FreeRows())
        engine.start()
        rng = np.random.default_rng(seed)
        accepted = 0
        for length in (3, 40, 150):
            prompt = rng.integers(0, 250, length).tolist()
            # Both find the prompt in the cache: AMX computes many rows in other numbers than few.
            answer_of(engine, prompt, 1, False)
            plain, _ = answer_of(engine, prompt, 80, False)
            drafted, right = answer_of(engine, prompt, 80, True)
            assert drafted == plain
            accepted += right
        assert accepted > 20, "nothing was drafted, so this test says nothing"
        engine.close()


def answer_of(engine: Engine, prompt: list[int], count: int, speculate: bool) -> tuple[list[int], int]:
    events: queue.Queue[Event] = queue.Queue()
    engine.submit(Generation(tuple(prompt), events.put, GREEDY, count, speculate=speculate))
    ids: list[int] = []
    accepted = 0
    while True:
        match events.get(timeout=30):
            case Sampled(new, accepted=right):
                ids += new
                accepted += right
            case Prefilled():
                pass
            case Finished():
                return ids, accepted
            case Failed() as failed:
                raise AssertionError(failed)
            case other:
                raise AssertionError(other)


# The drafter and the price of rows by themselves.


def test_longest_match_wins_and_the_latest_of_equals() -> None:
    text = [1, 2, 3, 10, 9, 2, 3, 11, 5, 1, 2, 3]
    assert Drafter().propose(text, 1, 2) == Draft((10, 9), 3, False, 0)
    text = [2, 3, 10, 9, 2, 3, 11, 5, 2, 3]
    assert Drafter().propose(text, 1, 2) == Draft((11, 5), 2, False, 0)
    assert Drafter().propose([1, 2, 3, 4], 1, 4) is None
    assert Drafter().propose([1, 2, 1], 1, 0) is None


def test_repeating_text_goes_on_beyond_its_end() -> None:
    draft = Drafter().propose([7, 1, 2, 1, 2], 1, 7)
    assert draft is not None
    assert draft.tokens == (1, 2, 1, 2, 1, 2, 1)


def test_given_text_is_followed_onwards() -> None:
    drafter = Drafter([5, 6, 7, 5, 6, 8])
    first = drafter.propose([1], 0, 3)
    assert first == Draft((5, 6, 7), 0, True, 0)
    assert first is not None
    drafter.judge(first, 3, False)
    second = drafter.propose([1, 5, 6, 7, 5, 6], 5, 3)
    assert second == Draft((8,), 5, True, 5)
    # The same two tokens stand twice in the text: the place after what was used is meant.
    again = Drafter([5, 6, 7, 5, 6, 8])
    again.judge(Draft((5, 6, 7), 0, True, 0), 3, False)
    assert again.propose([1, 9, 5, 6], 3, 3) == Draft((8,), 2, True, 5)


def test_growing_ids_are_followed_in_any_steps() -> None:
    drafter = Drafter()
    ids = [token % 7 for token in range(3000)]
    for end in (1, 2, 900, 901, 2999):
        found = drafter.propose(ids[:end], 1, 4)
        assert (found.tokens if found else ()) == (tuple(token % 7 for token in range(end, end + 4)) if end > 7 else ())


def test_length_follows_what_was_right() -> None:
    cost = RowCost()
    drafter = Drafter()
    draft = Draft((1,) * MAX_DRAFT, 4, False, 0)

    def length() -> int:
        return best_length(drafter.chances(draft), 1, 1, cost)

    at_first = length()
    assert 0 < at_first < MAX_DRAFT
    for _ in range(10):
        drafter.judge(draft, MAX_DRAFT, False)
    assert length() == MAX_DRAFT
    for _ in range(80):
        drafter.judge(draft, 0, True)
    assert length() == 0
    for _ in range(200):
        drafter.propose([1, 2, 3], 1, 4)
    assert 0 < length() <= at_first, "drafts that failed long ago were never tried again"


def test_price_of_rows_is_learnt_whatever_the_speed_of_the_machine() -> None:
    rng = np.random.default_rng(3)
    cost = RowCost()
    speed = 0.1
    for number in range(600):
        if number % 100 == 99:
            speed = float(rng.uniform(0.05, 0.3))
        rows = int(rng.choice([1, 1, 3, 5, 9, 17]))
        cost.observe(rows, speed * (1 + 0.6 * (rows - 1)) * float(rng.uniform(0.9, 1.2)))
    for rows in (3, 4, 5, 9, 17):
        assert cost.estimate(rows) == pytest.approx(1 + 0.6 * (rows - 1), rel=0.2)
    assert best_length((0.5, 0.25, 0.12), 1, 1, cost) == 0
    assert best_length((0.95, 0.9, 0.85), 1, 1, cost) >= 2


def test_many_sequences_leave_drafts_little_to_gain() -> None:
    cost = RowCost()
    for _ in range(60):
        for rows in range(1, 33):
            cost.observe(rows, max(1.0, 0.25 * rows))
    sure, unsure = (0.9, 0.8, 0.7), (0.6, 0.4, 0.2)
    assert best_length(unsure, 1, 1, cost) >= 2
    assert best_length(unsure, 16, 16, cost) == 0
    assert best_length(sure, 1, 1, cost) == 3
    assert best_length((0.99,) * MAX_DRAFT, 32, 32, cost) == 0
