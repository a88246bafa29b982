"""Drafts of what comes next, copied from the context: where its last tokens occurred before, what followed may follow again.

A draft costs rows in a pass and saves passes when it is right. Nothing here decides what is said: the sampler draws every token
from the model's own logits, and a draft is right as far as it agrees with what was drawn. For a draft that is one fixed text this
is exact rejection sampling: a drafted token stands with its own probability, and otherwise the token comes from all the others
in proportion to theirs.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul

import numpy as np
from numpy.typing import NDArray

MAX_DRAFT = 16
"""Drafted tokens per sequence and pass."""
MAX_MATCH = 16
"""Matches are not told apart beyond this length."""
MAX_ROWS = 31
"""Rows of a pass up to which drafts are added; far beyond, every further row costs what it does alone. Below AMX_ROWS of
csrc/cpu/amx_linear.h, from which on rows are computed in other numbers than a single one."""
_PRIOR_ROW = 0.45
"""What a further row is thought to cost, as a share of a pass with one row, before any was measured: a little less than on slow
cores, where the multiplier is the limit and a pass with 17 rows takes 8 times as long as one with a single row."""
_FIRST_PASSES = 4
"""The prior counts as much as so many passes with several rows."""
_MARGIN = 1.05
"""How much faster a pass must promise to be with a draft: chances are guesses, and plain text must not become slower."""
_LEARNING = 0.2
_FOLLOWING = 0.3
_FOLLOWING_MANY = 0.05
_DOUBT = 0.005
"""Per pass: rows that seemed dear are tried again after some hundred passes."""
_FORGETTING = 0.97
"""Per proposal: after some dozens of refusals have kept drafts away, they are tried again."""

Ids = NDArray[np.int32]

_LENGTHS = (0, 1, 2, 3, 5, 8, 15, MAX_MATCH)
"""The longest match of each class."""
_COPIED = (0.05, 0.2, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95)
_GIVEN = (0.6, 0.5, 0.6, 0.7, 0.8, 0.85, 0.92, 0.96)
"""How often the next token is thought to be right at first, per class: copied from the context, or from the client's text."""
_PRIOR_TRIALS = 4.0


class RowCost:
    """How much longer a pass takes with more rows, learnt from the passes; only ratios count.

    The share of one row is 1. The speed of the machine is taken from passes with one row wherever there are some, so that a busy
    neighbour is not taken for the price of a row. What was not seen for long is believed less and less.
    """

    def __init__(self) -> None:
        self._known: dict[int, float] = {1: 1.0}
        self._row = _PRIOR_ROW
        """What a further row costs where nothing better is known: from passes of any number of rows."""
        self._passes = _FIRST_PASSES
        self._second: float | None = None

    def estimate(self, rows: int) -> float:
        """The time of a pass with `rows` rows as a multiple of one with a single row."""
        if rows in self._known:
            return self._known[rows]
        below = max(known for known in self._known if known < rows)
        above = min((known for known in self._known if known > rows), default=None)
        start = self._known[below]
        if above is None:
            return start + self._row * (rows - below)
        return start + (self._known[above] - start) * (rows - below) / (above - below)

    def observe(self, rows: int, seconds: float) -> None:
        """A pass of `rows` rows, none of them of a prompt, took `seconds`."""
        if not 1 <= rows <= MAX_ROWS or seconds <= 0:
            return
        share = self.estimate(rows)
        if self._second is None:
            self._second = seconds / share
            return
        # A pass that was interrupted for long says little.
        error = min(max(seconds / (self._second * share), 0.5), 2.0) - 1
        self._second *= 1 + (_FOLLOWING if rows == 1 else _FOLLOWING_MANY) * error
        self._row += (_PRIOR_ROW - self._row) * _DOUBT
        for known, value in self._known.items():
            self._known[known] = value + (1 + self._row * (known - 1) - value) * _DOUBT
        if rows > 1:
            self._passes += 1
            # More than a pass of its own it costs only while something disturbs.
            row = min(max((share * (1 + error) - 1) / (rows - 1), 0.0), 1.0)
            self._row += max(1 / self._passes, _FOLLOWING_MANY) * (row - self._row)
            self._known[rows] = share * (1 + _LEARNING * error)


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next, after a match of `matched` tokens; `given`: from the text that the client gave."""

    tokens: tuple[int, ...]
    matched: int
    given: bool
    place: int
    """Of its first token in the given text."""

    def cut(self, length: int) -> Draft:
        return Draft(self.tokens[:length], self.matched, self.given, self.place)


@dataclass(slots=True)
class _Record:
    """Successes and trials per class of match length, the prior included."""

    prior: tuple[float, ...]
    right: list[float] = field(init=False)
    tried: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.right = [share * _PRIOR_TRIALS for share in self.prior]
        self.tried = [_PRIOR_TRIALS] * len(self.prior)

    def chance(self, matched: int) -> float:
        at = _class_of(matched)
        return self.right[at] / self.tried[at]

    def note(self, matched: int, success: bool) -> None:
        at = _class_of(matched)
        self.right[at] += success
        self.tried[at] += 1

    def forget(self) -> None:
        for at, share in enumerate(self.prior):
            self.right[at] += (share * _PRIOR_TRIALS - self.right[at]) * (1 - _FORGETTING)
            self.tried[at] += (_PRIOR_TRIALS - self.tried[at]) * (1 - _FORGETTING)


class Drafter:
    """The drafts of one sequence, and how they fared."""

    def __init__(self, given: Tokens[int] = ()) -> None:
        """`given`: a text that the answer is likely to resemble, from its beginning."""
        self._given = np.asarray(given, dtype=np.int32)
        self._cursor = 0
        self._context = np.empty(0, dtype=np.int32)
        self._length = 0
        self._records = {False: _Record(_COPIED), True: _Record(_GIVEN)}

    def propose(self, ids: Tokens[int], answered: int, limit: int) -> Draft | None:
        """The most promising continuation of `ids`, at most `limit` tokens; `answered` of them are the answer so far."""
        if limit < 1:
            return None
        context = self._synchronised(ids)
        last = context[-MAX_MATCH:]
        drafts = [self._copied(context, last, limit), self._from_given(last, answered, limit)]
        for record in self._records.values():
            record.forget()
        return max((draft for draft in drafts if draft), key=lambda draft: sum(self.chances(draft)), default=None)

    def chances(self, draft: Draft) -> list[float]:
        """For each token of the draft, how likely it and all before it are right."""
        record = self._records[draft.given]
        return list(accumulate((record.chance(draft.matched + place) for place in range(len(draft.tokens))), mul))

    def judge(self, draft: Draft, accepted: int, refused: bool) -> None:
        """`accepted` tokens stood; `refused`: the next one did not (it may also not have been looked at)."""
        record = self._records[draft.given]
        for place in range(accepted):
            record.note(draft.matched + place, True)
        if refused:
            record.note(draft.matched + accepted, False)
        if draft.given:
            self._cursor = draft.place + accepted

    def _synchronised(self, ids: Tokens[int]) -> Ids:
        """`ids`, of which the beginning is known from the last call."""
        if len(ids) > len(self._context):
            grown = np.empty(max(1024, 2 * len(ids)), dtype=np.int32)
            grown[: self._length] = self._context[: self._length]
            self._context = grown
        self._context[self._length : len(ids)] = ids[self._length :]
        self._length = len(ids)
        return self._context[: self._length]

    @staticmethod
    def _copied(context: Ids, last: Ids, limit: int) -> Draft | None:
        """After the most recent of the longest matches. One that reaches the end goes on with itself, as in repeating text."""
        ends, matched = _matches(context[:-1], last)
        if not matched:
            return None
        start = int(ends[-1]) + 1
        tokens: list[int] = context[start : start + limit].tolist()
        period = len(tokens)
        while len(tokens) < limit:
            tokens.append(tokens[-period])
        return Draft(tuple(tokens), matched, False, 0)

    def _from_given(self, last: Ids, answered: int, limit: int) -> Draft | None:
        """After the next of the longest matches beyond what was used; an answer that has not begun starts as the text does."""
        if not len(self._given):
            return None
        ends, matched = _matches(self._given[:-1], last)
        if not matched and answered:
            return None
        ahead = ends[ends >= self._cursor - 1]
        start = 0 if not matched else int(ahead[0] if len(ahead) else ends[-1]) + 1
        return Draft(tuple(self._given[start : start + limit].tolist()), matched, True, start)


def _matches(text: Ids, last: Ids) -> tuple[NDArray[np.intp], int]:
    """Where the longest end of `last` that occurs in `text` ends there, in order, and its length; 0 when nothing does."""
    ends = np.flatnonzero(text == last[-1])
    if not len(ends):
        return ends, 0
    for matched in range(1, len(last)):
        longer = ends[ends >= matched]
        longer = longer[text[longer - matched] == last[-1 - matched]]
        if not len(longer):
            return ends, matched
        ends = longer
    return ends, len(last)


def _class_of(matched: int) -> int:
    return next((at for at, longest in enumerate(_LENGTHS) if matched <= longest), len(_LENGTHS) - 1)


def best_length(chances: Tokens[float], tokens: float, rows: int, cost: RowCost) -> int:
    """How many drafted tokens give the most tokens per second, in a pass that gives `tokens` with `rows` rows without them."""
    best, best_rate, gained = 0, _MARGIN * tokens / cost.estimate(rows), tokens
    for length, chance in enumerate(chances[: max(0, MAX_ROWS - rows)], 1):
        gained += chance
        rate = gained / cost.estimate(rows + length)
        if rate > best_rate:
            best, best_rate = length, rate
    return best
