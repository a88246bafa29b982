"""Edits found by surprise: where the model, reading the function as it is, would have written something else.

A language model gives every token of a text a probability. Most mistakes of one line are tokens it held unlikely, with the
right one among the likeliest in that place. So: score the function, let the model go on from its own choice to the end of the
line, splice that line in, and score the function again. A real repair makes the whole function more likely, by e^3 and more; a
matter of taste makes the rest of it less so. The model is asked nothing and writes a few tokens, so this costs a fraction of a
rewrite.
"""

from __future__ import annotations

import asyncio
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from kcode.guided.suspects import Suspect
from kcode.guided.trial import unknown_names
from kcode.model import Alternative, TextModel, TokenScore, Usage
from kcode.tools.syntax import introduced_faults

ALTERNATIVES = 3
MAX_PLACES = 10
MAX_RESCORED = 12
# A place counts when the model's choice is this much likelier than what stands there, or likely in itself.
LIKELY_ANYWAY = -1.2
LINE_TOKENS = 40
# Windows begin at multiples of this: of functions near each other the engine reads what stands before them once.
CONTEXT_STEP = 1024
CONTEXT_STEPS = 2
# What an edit must gain to be worth its size: most mistakes are small, and a longer text is more easily a more likely one.
CHANGE_COST = 0.1
ENOUGH_GAIN = 5.0
# After this many the rest is unlikely to be better than a fair one.
MANY_RESCORED = 8
FAIR_GAIN = 1.0
RESCORED_AT_ONCE = 4
# How much of the function after an edit is read again: what follows farther away hardly depends on it, and reading takes time.
HORIZON_BYTES = 800
# So much shows of most edits that they are worse; only what does not lose HOPELESS there is read on to the horizon.
NEAR_BYTES = 160
HOPELESS = -6.0
# A table or a long call surprises in every token: other lines have their turn as well.
MAX_PLACES_OF_LINE = 2
REMARK = re.compile(r"\s+(?:#|//) [^'\"`]*$")


@dataclass(frozen=True, slots=True)
class Place:
    """`margin` is how much likelier `choice` is than the token at `score`, as a difference of logarithms."""

    score: TokenScore
    choice: Alternative
    margin: float


@dataclass(frozen=True, slots=True)
class Edit:
    """The whole file with one spot changed; `line` is where, counted from 0. `gain` is 0 until it is scored."""

    text: str
    line: int
    margin: float
    gain: float = 0.0


@dataclass(frozen=True, slots=True)
class Proposal:
    """A new version of the suspect's file; `gain`: how much likelier (natural logarithm) the function is, less its cost."""

    suspect: Suspect
    text: str
    line: int
    gain: float


Spend = Callable[[Usage], None]


async def propose(model: TextModel, suspect: Suspect, spend: Spend) -> list[Proposal]:
    """Edits of the suspect, the best first. Raises ModelError and EngineDied."""
    reading = Reading(model, suspect, spend)
    scores = await reading.scores()
    places = reading.surprising(scores)
    found = await asyncio.gather(*(reading.edits(place) for place in places))
    edits = distinct(suspect.file.text, suspect.path, [edit for some in found for edit in some])
    scored: list[Edit] = []
    for start in range(0, min(len(edits), MAX_RESCORED), RESCORED_AT_ONCE):
        some = edits[start : start + RESCORED_AT_ONCE]
        near = await asyncio.gather(*(reading.rescored(edit, scores, NEAR_BYTES) for edit in some))
        hopeful = [edit for edit in near if edit.gain > HOPELESS]
        far = [edit for edit in hopeful if not reading.is_read(edit, NEAR_BYTES)]
        scored += [edit for edit in near if edit not in far]
        scored += await asyncio.gather(*(reading.rescored(edit, scores, HORIZON_BYTES) for edit in far))
        best = max(edit.gain for edit in scored)
        if best >= ENOUGH_GAIN or (len(scored) >= MANY_RESCORED and best >= FAIR_GAIN):
            break
    scored.sort(key=lambda edit: -edit.gain)
    return [Proposal(suspect, edit.text, edit.line, edit.gain) for edit in scored]


class Reading:
    """One function read by the model, within a window of its file that begins at a line."""

    def __init__(self, model: TextModel, suspect: Suspect, spend: Spend) -> None:
        self._model = model
        self._spend = spend
        data = suspect.file.text.encode()
        symbol = suspect.symbol
        start = max(0, symbol.start_byte // CONTEXT_STEP - CONTEXT_STEPS) * CONTEXT_STEP
        start = data.find(b"\n", start) + 1 if start else 0
        end = data.find(b"\n", symbol.end_byte)
        self._before = data[:start]
        self._window = data[start : len(data) if end < 0 else end + 1]
        self._after = data[start + len(self._window) :]
        self._body = body_start(suspect) - start
        self._lines = self._window.decode().split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line.encode()) + 1)

    async def scores(self) -> tuple[TokenScore, ...]:
        scored = await self._model.score(self._window.decode(), self._body, ALTERNATIVES)
        self._spend(scored.usage)
        return scored.tokens

    def surprising(self, scores: Sequence[TokenScore]) -> list[Place]:
        """The places where the model would have chosen otherwise, the clearest first."""
        places: list[Place] = []
        for score in scores:
            written = self._window[score.start : score.start + score.length].decode(errors="replace")
            for choice in score.alternatives[: ALTERNATIVES - 1]:
                margin = choice.logprob - score.logprob
                is_other = choice.text.strip() != written.strip() or not (choice.text.strip() or "\n" in choice.text + written)
                if (
                    is_other
                    and choice.text != written
                    and "\ufffd" not in choice.text
                    and (margin > 0 or choice.logprob > LIKELY_ANYWAY)
                ):
                    places.append(Place(score, choice, margin))
        places.sort(key=lambda place: -place.margin)
        found: list[Place] = []
        of_line: Counter[int] = Counter()
        for place in places:
            line = self._line_at(place.score.start)
            of_line[line] += 1
            if of_line[line] <= MAX_PLACES_OF_LINE:
                found.append(place)
        return found[:MAX_PLACES]

    def _line_at(self, at: int) -> int:
        return bisect_right(self._starts, at, hi=len(self._lines)) - 1

    async def edits(self, place: Place) -> list[Edit]:
        """What comes of the model's choice: the line replaced, a line put before it, a line left out, one token changed."""
        at = place.score.start
        if self._window[at] & 0xC0 == 0x80:
            return []  # inside a character, where no edit can begin
        line = self._line_at(at)
        column = at - self._starts[line]
        head = self._lines[line].encode()[:column].decode()
        written = head + place.choice.text
        if not has_whole_line(written):
            after = self._window[at + place.score.length :].decode(errors="replace")
            before = self._window[:at].decode()
            more = await self._model.continue_text(before + place.choice.text, "\n", LINE_TOKENS, after)
            self._spend(more.usage)
            written += more.text
        block = whole_lines(written)
        replacing = [*block[:-1], with_remark(block[-1], self._lines[line])]
        edits = [self._spliced(line, line + 1, replacing, place)]
        if not head.strip():
            edits.append(self._spliced(line, line, block, place))
        if line + 1 < len(self._lines) and block and block[-1].strip() == self._lines[line + 1].strip():
            edits.append(self._spliced(line, line + 2, block, place))
        end = at + place.score.length
        swapped = self._window[:at] + place.choice.text.encode() + self._window[end:]
        edits.append(Edit(self._whole(swapped), line + self._before.count(b"\n"), place.margin))
        return edits

    def is_read(self, edit: Edit, horizon: int) -> bool:
        """Whether there is no more to read behind that horizon."""
        return after_horizon(self._window, self._window_of(edit), horizon) == 0

    def _window_of(self, edit: Edit) -> bytes:
        data = edit.text.encode()
        return data[len(self._before) : len(data) - len(self._after)]

    async def rescored(self, edit: Edit, scores: Sequence[TokenScore], horizon: int) -> Edit:
        """With its gain: the likelihood from the changed line to `horizon` bytes behind it, after less before."""
        line = edit.line - self._before.count(b"\n")
        start = max(self._body, self._starts[line])
        window = self._window_of(edit)
        left = after_horizon(self._window, window, horizon)
        scored = await self._model.score(window[: len(window) - left].decode(), start, 1)
        self._spend(scored.usage)
        end = len(self._window) - left
        before = sum(score.logprob for score in scores if score.start + score.length > start and score.start < end)
        gain = sum(score.logprob for score in scored.tokens) - before
        return Edit(edit.text, edit.line, edit.margin, gain - CHANGE_COST * changed_chars(self._window.decode(), window.decode()))

    def _spliced(self, start: int, end: int, block: list[str], place: Place) -> Edit:
        lines = [*self._lines[:start], *block, *self._lines[end:]]
        return Edit(self._whole("\n".join(lines).encode()), start + self._before.count(b"\n"), place.margin)

    def _whole(self, window: bytes) -> str:
        return (self._before + window + self._after).decode(errors="replace")


def after_horizon(old: bytes, new: bytes, horizon: int) -> int:
    """How many bytes at the end of both are whole lines farther than `horizon` bytes behind the last difference."""
    same = 0
    for was, now in zip(reversed(old), reversed(new), strict=False):
        if was != now:
            break
        same += 1
    if same <= horizon:
        return 0
    cut = old.find(b"\n", len(old) - same + horizon)
    return 0 if cut < 0 else len(old) - cut - 1


def changed_chars(old: str, new: str) -> int:
    """Characters taken away or put in, whichever are more, in the lines that differ."""
    before, after = old.split("\n"), new.split("\n")
    while before and after and before[0] == after[0]:
        before, after = before[1:], after[1:]
    while before and after and before[-1] == after[-1]:
        before, after = before[:-1], after[:-1]
    was, now = "\n".join(before), "\n".join(after)
    same = sum(block.size for block in SequenceMatcher(None, was, now, autojunk=False).get_matching_blocks())
    return max(len(was), len(now)) - same


def with_remark(new: str, old: str) -> str:
    """The new line with the remark at the end of the old one, which the model had no reason to repeat."""
    remark = REMARK.search(old)
    is_code = new.strip() and remark is not None and old[: remark.start()].strip()
    return new if not is_code or remark is None or REMARK.search(new) else new.rstrip() + remark[0]


def is_only_comment(old: str, new: str) -> bool:
    """Whether all that is new are lines of comments or documentation."""
    added = set(new.split("\n")) - set(old.split("\n"))
    return bool(added) and all(line.strip().startswith(("#", "//", "/*", '"""', "'''")) for line in added)


def has_whole_line(written: str) -> bool:
    """Whether a line with something in it is finished."""
    return "\n" in written.lstrip("\n \t")


def whole_lines(written: str) -> list[str]:
    """`written` cut at the end of its first line that has something in it."""
    blank = len(written) - len(written.lstrip("\n \t"))
    end = written.find("\n", blank)
    return (written if end < 0 else written[:end]).split("\n")


def distinct(original: str, path: str, edits: Sequence[Edit]) -> list[Edit]:
    """Those that change more than spaces, each once, in order of their margin; without those that are certainly wrong.

    That are a torn character, a new syntax error, and a new name that nothing defines.
    """
    seen = {squeezed(original)}
    kept: list[Edit] = []
    for edit in sorted(edits, key=lambda item: -item.margin):
        key = squeezed(edit.text)
        if key in seen:
            continue
        seen.add(key)
        if is_only_comment(original, edit.text):
            continue
        torn = edit.text.count("\ufffd") > original.count("\ufffd")
        if not torn and not introduced_faults(path, original, edit.text) and not unknown_names(path, original, edit.text):
            kept.append(edit)
    return kept


def squeezed(text: str) -> str:
    """The text without blank lines and trailing spaces; indentation counts."""
    return "\n".join(line.rstrip() for line in text.split("\n") if line.strip())


def body_start(suspect: Suspect) -> int:
    """The byte where the statements begin: after the signature and, in Python, the docstring."""
    data = suspect.file.text.encode()
    symbol = suspect.symbol
    end = data.find(b"\n", symbol.core_byte)
    start = symbol.core_byte if end < 0 or end >= symbol.end_byte else end + 1
    body = data[start : symbol.end_byte]
    stripped = body.lstrip()
    for quote in (b'"""', b"'''"):
        if stripped.startswith((quote, b"r" + quote)):
            close = body.find(quote, body.find(quote) + 3)
            after = body.find(b"\n", close)
            return start + after + 1 if 0 <= close < after else start
    return start
