"""The default model says the same with drafts and without, in a batch and alone, whatever the chunks of its prompt."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from kcode_backend.chat.families import chat_format
from kcode_backend.chat.format import ChatMessage
from kcode_backend.engine.engine import Engine
from kcode_backend.engine.request import Event, Finished, Generation, Sampled
from kcode_backend.engine.speculative import RowCost
from kcode_backend.kv.cache import KVCache
from kcode_backend.kv.pool import BLOCK_TOKENS
from kcode_backend.models.batch import Batch
from kcode_backend.models.load import load
from tests.backend.engine.test_engine import GREEDY

TOKENS = 210
BROKEN = """def merge_intervals(intervals):
    merged = []
    for start, end in sorted(intervals):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def total_length(intervals):
    total = 0
    for start, end in merge_intervals(intervals):
        total += end - start
    return total


def gaps(intervals):
    found = []
    merged = merge_intervals(intervals)
    for left, right in zip(merged, merged):
        if right[0] > left[1]:
            found.append((left[1], right[0]))
    return found
"""
FIX = (
    "The tests fail: merge_intervals([(1, 10), (2, 3)]) should be [(1, 10)], touching intervals should be joined, and gaps finds "
    f"nothing. Repair the file. Answer with the whole file only, in one block of code.\n\n```python\n{BROKEN}```"
)


CHAT = "Explain in a few sentences why the sky is blue and sunsets are red."


class CheapRows(RowCost):
    def estimate(self, rows: int) -> float:
        return 0.85 + 0.15 * rows


@dataclass(frozen=True)
class Answer:
    ids: list[int]
    drafted: int
    accepted: int


class Bench:
    """The real model behind an engine that tries even doubtful drafts."""

    def __init__(self, path: Path) -> None:
        self.model = load(path)
        self.format = chat_format(self.model)
        self.kv = KVCache.allocate(self.model.config, 2048 // BLOCK_TOKENS, BLOCK_TOKENS)
        self.engine = Engine(self.model, self.kv, 2048, CheapRows())
        self.engine.start()

    def ask(self, text: str, draft: str = "", speculate: bool = True, tokens: int = TOKENS) -> Pending:
        events: queue.Queue[Event] = queue.Queue()
        prompt = tuple(self.format.prompt([ChatMessage("user", text)], []))
        given = tuple(self.format.answer_ids(draft)) if draft else ()
        self.engine.submit(Generation(prompt, events.put, GREEDY, tokens, draft=given, speculate=speculate))
        return Pending(events)


@dataclass(frozen=True)
class Pending:
    events: queue.Queue[Event]

    def wait(self) -> Answer:
        ids: list[int] = []
        drafted = accepted = 0
        while not isinstance(event := self.events.get(timeout=600), Finished):
            if isinstance(event, Sampled):
                ids += event.ids
                drafted += event.drafted
                accepted += event.accepted
        return Answer(ids, drafted, accepted)


@pytest.mark.model
def test_drafts_and_neighbours_change_no_token(real_model: Path) -> None:
    bench = Bench(real_model)
    plain = bench.ask(FIX, speculate=False).wait()
    assert (len(plain.ids), plain.drafted) == (TOKENS, 0)
    given = bench.ask(FIX, draft=f"```python\n{BROKEN}```").wait()
    assert given.ids == plain.ids
    copied = bench.ask(FIX).wait()
    assert copied.ids == plain.ids
    for answer in (given, copied):
        assert answer.accepted > 30, "hardly anything was drafted, so this test says little"
        assert answer.drafted > answer.accepted, "no draft was wrong, so this test says little"
    chat = bench.ask(CHAT, speculate=False, tokens=40).wait()
    together = [bench.ask(CHAT, tokens=40), bench.ask(FIX, tokens=40), bench.ask(CHAT + " Be brief.", speculate=False, tokens=40)]
    answers = [pending.wait() for pending in together]
    bench.engine.close()
    assert answers[0].ids == chat.ids
    assert answers[1].ids == plain.ids[:40]


@pytest.mark.model
def test_chunks_of_a_prompt_change_no_bit_of_its_logits(real_model: Path) -> None:
    model = load(real_model)
    ids = torch.tensor(chat_format(model).prompt([ChatMessage("user", FIX)], []))

    def last_logits(cuts: list[int]) -> torch.Tensor:
        kv = KVCache.allocate(model.config, -(-len(ids) // BLOCK_TOKENS), BLOCK_TOKENS)
        logits = torch.empty(0)
        with torch.inference_mode():
            for start, end in pairwise([0, *cuts, len(ids)]):
                where = torch.arange(start, end)
                batch = Batch(
                    token_ids=ids[where],
                    positions=where,
                    slots=where,
                    seq_starts=torch.tensor([0, end - start], dtype=torch.int32),
                    block_tables=torch.arange(kv.blocks, dtype=torch.int32)[None],
                    context_lens=torch.tensor([end], dtype=torch.int32),
                    logit_rows=torch.tensor([end - start - 1]),
                )
                logits = model.forward(batch, kv)
        return logits

    whole = last_logits([])
    for cuts in ([1, 170, 173], [len(ids) - 9]):
        assert torch.equal(last_logits(cuts), whole)
