"""Continuous batching in one thread: requests come in from anywhere, events go out through each request's sink."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kcode_backend.engine.histogram import STEP_BOUNDS_S, Histogram
from kcode_backend.engine.pace import STREAMED_TOKENS, Pace
from kcode_backend.engine.request import CERTAIN, Event, Failed, Finished, Generation, Prefilled, Sampled, StopReason
from kcode_backend.engine.runner import Runner
from kcode_backend.engine.sampler import Likelihoods, draw, restrict
from kcode_backend.engine.scheduler import Scheduler, Step
from kcode_backend.engine.sequence import Sequence
from kcode_backend.engine.speculative import MAX_DRAFT, Draft, RowCost, best_length
from kcode_backend.errors import BackendError, ModelFileError, OutOfContext
from kcode_backend.kv.cache import KVCache
from kcode_backend.kv.disk import DiskTier
from kcode_backend.kv.pool import BlockPool
from kcode_backend.kv.prefix import PrefixIndex
from kcode_backend.kv.table import BlockTable
from kcode_backend.kv.tiers import Arrival, TierCounters, Tiers
from kcode_backend.models.model import Model

log = logging.getLogger(__name__)

STORED_PER_STEP = 8
"""Blocks copied out for the disk tier between two passes: some milliseconds, and more than a pass computes on most machines."""
CLOSE_S = 3.0
"""How long the end may take to bring the last blocks to disk."""


@dataclass(frozen=True, slots=True)
class _Submit:
    ticket: int
    generation: Generation


@dataclass(frozen=True, slots=True)
class _Cancel:
    ticket: int


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Command = _Submit | _Cancel | _Stop | Arrival


@dataclass(slots=True)
class Counters:
    """Totals since the start; written by the engine's thread, read by anyone."""

    requests: int = 0
    passes: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of the drafted ones, those that were also drawn."""
    model_s: float = 0.0
    """Time inside forward passes."""
    busy_s: float = 0.0
    """Time of whole steps, scheduling and sampling included."""
    steps: Histogram = field(default_factory=lambda: Histogram(STEP_BOUNDS_S))
    """Seconds of whole steps."""
    tiers: TierCounters = field(default_factory=TierCounters)


class Engine:
    """One model. `submit`, `cancel` and `close` may be called from any thread; the work is done by the engine's own."""

    def __init__(
        self, model: Model, kv: KVCache, context_limit: int, cost: RowCost | None = None, disk: DiskTier | None = None
    ) -> None:
        """`context_limit` bounds prompt and answer of one request; it is lowered to what the cache holds.

        `cost` is what is known of this machine's rows, by default nothing.
        With `disk` computed blocks are kept there and found again by later engines; the engine closes it.
        """
        self.context_limit = min(context_limit, kv.blocks * kv.block_size)
        self.fingerprint = model.fingerprint
        self.pool = BlockPool(kv.blocks, PrefixIndex(f"{model.fingerprint} {kv.layout}"))
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._tiers = Tiers(self.pool, kv, disk, self._commands.put)
        self.counters = Counters(tiers=self._tiers.counters)
        self._kv = kv
        self._runner = Runner(model, kv)
        self._scheduler = Scheduler(self.pool, self._tiers)
        self.experts = model.experts
        self._pace = Pace(STREAMED_TOKENS if model.experts else None)
        self._cost = cost or RowCost()
        self._tickets = itertools.count()
        self._running: dict[int, Sequence] = {}
        self._idle = True
        """Nothing can be computed before the next command."""
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop after the current pass; running requests get no further events."""
        self._commands.put(_Stop())
        self._thread.join()

    def submit(self, generation: Generation) -> int:
        """Start a request; returns its ticket. Raises OutOfContext when the prompt leaves no room for an answer."""
        needed = len(generation.prompt) + len(generation.forced)
        if needed >= self.context_limit:
            raise OutOfContext(
                f"the prompt has {needed} tokens but the context holds {self.context_limit}; "
                "shorten the conversation or start the engine with a larger --context"
            )
        if not generation.prompt:
            raise ValueError("a prompt needs at least one token")
        ticket = next(self._tickets)
        self._commands.put(_Submit(ticket, generation))
        return ticket

    def cancel(self, ticket: int) -> None:
        """End a request without a further event once the current pass is over; unknown and finished tickets are ignored."""
        self._commands.put(_Cancel(ticket))

    @property
    def running(self) -> int:
        """Requests under way, waiting ones included."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests under way that have no blocks yet."""
        return sum(not sequence.attached for sequence in list(self._scheduler.sequences))

    def _work(self) -> None:
        while not self._closing:
            self._take_commands()
            if self._running and not self._closing:
                try:
                    self._step()
                except ModelFileError as error:
                    log.error("a pass failed; all running requests are ended: %s", error)
                    self._fail_all(str(error))
                except Exception:
                    log.exception("a pass failed; all running requests are ended")
                    self._fail_all("the engine failed while computing; its log has the details")
            self._tiers.store(STORED_PER_STEP)
        for sequence in self._running.values():
            # What it has computed is cached and goes to disk.
            self._scheduler.remove(sequence)
        self._running.clear()
        self._tiers.close(CLOSE_S)
        if self.experts is not None:
            self.experts.close()

    def _take_commands(self) -> None:
        """Act on all commands at hand; wait for one while there is nothing to compute and nothing to store."""
        wait = self._idle or not self._running
        while True:
            try:
                command = self._commands.get(wait, self._tiers.wait_s if wait else None)
            except queue.Empty:
                return
            wait, self._idle = False, False
            match command:
                case _Submit(ticket, generation):
                    sequence = Sequence(generation, ticket, BlockTable(self.pool, self._kv.block_size))
                    self._running[ticket] = sequence
                    self._scheduler.add(sequence)
                    self.counters.requests += 1
                case _Cancel(ticket):
                    sequence = self._running.pop(ticket, None)
                    if sequence is not None:
                        self._scheduler.remove(sequence)
                case Arrival():
                    self._arrive(command)
                case _Stop():
                    self._closing = True
                    return

    def _arrive(self, arrival: Arrival) -> None:
        sequence = self._running.get(arrival.fetch.ticket)
        if sequence is None or sequence.fetch is not arrival.fetch:
            self._tiers.dismissed(arrival)
            return
        sequence.computed = self._tiers.arrived(arrival, sequence.table, sequence.keys, sequence.computed, sequence.reusable)
        if sequence.first_token_s is None:
            total = len(sequence.generation.prompt)
            sequence.generation.sink(Prefilled(min(sequence.computed, total), total, sequence.cached))

    def _step(self) -> None:
        begun = time.monotonic()
        turn = self._scheduler.turn()
        drafts = self._drafts([sequence for sequence in turn if sequence.decoding])
        decoding = any(sequence.decoding for sequence in turn)
        tried = {sequence: draft.tokens for sequence, draft in drafts.items()}
        step = self._scheduler.plan(turn, self._pace.budget(decoding), tried)
        if not step.spans:
            assert any(sequence.fetch for sequence in self._running.values()), "the scheduler found nothing to compute"
            self._idle = True
            return
        prompt_tokens = sum(span.count for span in step.spans if not span.sequence.decoding)
        started = time.monotonic()
        outputs = self._runner.run(step)
        spent = time.monotonic() - started
        if not decoding:
            self._pace.observe(prompt_tokens, spent)
        if not prompt_tokens:
            self._cost.observe(sum(span.count + len(span.draft) for span in step.spans), spent)
        sampling = [span for span in step.spans if span.samples]
        self._report_prefill(step)
        for span, scored in outputs.scores:
            span.sequence.generation.sink(scored)
        self._scheduler.commit(step)
        row = 0
        for span in sampling:
            end = row + 1 + len(span.draft)
            if span.sequence.generation.max_tokens:
                self._sample(span.sequence, outputs.logits[row:end], drafts[span.sequence] if span.draft else None)
            else:
                self._finish(span.sequence, self._outcome(span.sequence, "length"))
            row = end
        self.counters.passes += 1
        self.counters.prompt_tokens += prompt_tokens
        self.counters.model_s += spent
        spent = time.monotonic() - begun
        self.counters.busy_s += spent
        self.counters.steps.observe(spent)

    def _report_prefill(self, step: Step) -> None:
        """Before commit: the counts after this pass."""
        for span in step.spans:
            sequence = span.sequence
            if sequence.first_token_s is None:
                total = len(sequence.generation.prompt)
                done = min(sequence.computed + span.count, total)
                sequence.generation.sink(Prefilled(done, total, sequence.cached))

    def _drafts(self, decoding: list[Sequence]) -> dict[Sequence, Draft]:
        """What to try beside the next token of each decoding sequence: as much as makes the whole pass say more in its time."""
        tokens, rows = float(len(decoding)), sum(sequence.pending for sequence in decoding)
        drafts: dict[Sequence, Draft] = {}
        for sequence in decoding:
            certain = best_length((1.0,) * MAX_DRAFT, tokens, rows, self._cost)
            if not certain:
                break
            draft = self._draft(sequence)
            if draft is None:
                continue
            chances = sequence.drafter.chances(draft)
            length = best_length(chances, tokens, rows, self._cost)
            if length:
                drafts[sequence] = draft.cut(length)
                tokens += sum(chances[:length])
                rows += length
        return drafts

    def _draft(self, sequence: Sequence) -> Draft | None:
        generation = sequence.generation
        if not generation.speculate:
            return None
        answered = len(sequence.ids) - len(generation.prompt)
        # The token after the last accepted one is drawn as well.
        room = min(generation.max_tokens - answered, self.context_limit - len(sequence.ids)) - 1
        return sequence.drafter.propose(sequence.ids, answered, min(room, MAX_DRAFT))

    def _sample(self, sequence: Sequence, rows: NDArray[np.float32], draft: Draft | None) -> None:
        """Draw the next token, and one more after each token of the draft that was drawn.

        rows: [1 + tokens of the draft, vocab].
        """
        generation = sequence.generation
        new: list[int] = []
        if sequence.first_token_s is None:
            sequence.first_token_s = time.monotonic()
            new += generation.forced
        tried = draft.tokens if draft else ()
        accepted = 0
        end: StopReason | Failed | None = None
        while end is None:
            try:
                taken, end = self._take(sequence, rows[accepted])
            except (ValueError, BackendError) as error:
                # Nothing can be drawn, or the constraint gave up: the others' answers go on.
                end = Failed(" ".join(str(error).split()))
                break
            new += taken
            stands = _agreeing(taken, tried[accepted:])
            accepted += stands
            if stands < len(taken):
                break
        if draft:
            sequence.computed += accepted
            sequence.drafter.judge(draft, accepted, end is None and accepted < len(tried))
            self.counters.drafted_tokens += len(tried)
            self.counters.accepted_tokens += accepted
        if new:
            generation.sink(Sampled(tuple(new), sequence.take_likelihoods()[: len(new)], len(tried), accepted))
        if end is not None:
            self._finish(sequence, end if isinstance(end, Failed) else self._outcome(sequence, end))

    def _take(self, sequence: Sequence, row: NDArray[np.float32]) -> tuple[list[int], StopReason | None]:
        """Draw one token and append it with those it forces. Raises as `_draw` does."""
        generation = sequence.generation
        token = self._draw(sequence, row)
        taken = [token]
        reason = self._append(sequence, token)
        constraint = generation.constraint
        if constraint and reason is None:
            for forced in constraint.forced():
                taken.append(forced)
                if generation.likelihoods is not None:
                    sequence.likelihoods.append(CERTAIN)
                reason = self._append(sequence, forced)
                if reason is not None:
                    break
        return taken, reason

    def _draw(self, sequence: Sequence, row: NDArray[np.float32]) -> int:
        """Raises ValueError when no token is possible, BackendError when the constraint cannot go on."""
        generation = sequence.generation
        mask = generation.constraint.mask() if generation.constraint else None
        likelihoods: Likelihoods | None = None
        if generation.likelihoods is not None:
            restrict(row, mask, generation.banned)
            likelihoods = Likelihoods(row, generation.likelihoods)
        token = draw(
            row,
            generation.sampling,
            sequence.random,
            mask=mask,
            banned=generation.banned,
            seen=sequence.seen,
            counts=sequence.counts,
        )
        if likelihoods:
            sequence.likelihoods.append(likelihoods.of(token))
        self.counters.sampled_tokens += 1
        return token

    def _append(self, sequence: Sequence, token: int) -> StopReason | None:
        """Take a token into the answer; the reason when it ends it."""
        generation = sequence.generation
        sequence.append(token)
        if token in generation.stop_ids:
            return "stop"
        if generation.constraint:
            generation.constraint.accept(token)
            if generation.constraint.finished():
                return "stop"
        answer = len(sequence.ids) - len(generation.prompt)
        if answer >= generation.max_tokens or len(sequence.ids) >= self.context_limit:
            return "length"
        return None

    def _outcome(self, sequence: Sequence, reason: StopReason) -> Finished:
        prompt = len(sequence.generation.prompt)
        now = time.monotonic()
        first = sequence.first_token_s or now
        return Finished(
            reason=reason,
            prompt_tokens=prompt,
            cached_tokens=max(0, prompt - sequence.worked),
            completion_tokens=len(sequence.ids) - prompt,
            prefill_s=first - sequence.started_s,
            decode_s=now - first,
            disk_tokens=sequence.from_disk,
        )

    def _finish(self, sequence: Sequence, event: Event) -> None:
        self._scheduler.remove(sequence)
        del self._running[sequence.arrival]
        sequence.generation.sink(event)

    def _fail_all(self, message: str) -> None:
        for sequence in list(self._running.values()):
            # What the failed pass wrote is unknown: nothing of it may be found again.
            sequence.computed = 0
            self._finish(sequence, Failed(message))
        self.pool.clear()


def _agreeing(taken: list[int], tried: tuple[int, ...]) -> int:
    """How many of the first tokens are the same."""
    pairs = zip(taken, tried, strict=False)
    return next((at for at, (drawn, guess) in enumerate(pairs) if drawn != guess), min(len(taken), len(tried)))
