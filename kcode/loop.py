"""The agent loop: model, calls, results, again, until there is nothing left to do.

It knows no screen, no disk and no vendor. `work` is the free loop, the driver of capable models; `RunningTurn` runs any driver
and turns what it does into the events of one turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial

from kcode.errors import KcodeError
from kcode.events import Event, Notice, StepFinished, TurnFinished, TurnStarted
from kcode.hints import CUT_OFF, EMPTY
from kcode.steps import Driver, Steps
from kcode.tools.together import groups, together
from kcode.turn import Emit, Ending, LimitReached, LoopFound

MAX_CUT_OFF = 3
MAX_EMPTY = 3
INTERRUPTED = "Interrupted: the user stopped this call, so it may have run in part."
NOT_RUN = "Not run: the turn ended before this call."


async def work(steps: Steps, text: str) -> Ending:
    """Let the model work freely on `text`: each step's calls run in order, their results go back.

    The turn ends when an answer has no call, when a tool ends it, or at a limit.
    """
    steps.say(text)
    cut_off = empty = 0
    while True:
        steps.take_steering()
        await steps.make_room()
        answer = await steps.ask()
        was_cut = answer.finish == "length"
        calls = answer.message.calls
        for group in groups(calls):
            for called in await together([partial(steps.call, call, cut_off=was_cut) for call in group]):
                if called.ends_turn:
                    return Ending("finished", f"the model called {called.call.name}", called.result.text)
        if was_cut:
            cut_off += 1
            if cut_off > MAX_CUT_OFF:
                return Ending("limit", f"{cut_off} answers in a row were cut off at {answer.usage.completion_tokens} tokens")
        else:
            cut_off = 0
        if calls:
            empty = 0
        elif was_cut:
            steps.say(CUT_OFF)
        elif not answer.message.text.strip():
            empty += 1
            if empty >= MAX_EMPTY:
                return Ending("error", f"the model gave {empty} empty answers in a row")
            steps.say(EMPTY)
        elif not steps.take_steering():
            return Ending("finished", "the model answered without a call")


class RunningTurn:
    """One turn being driven. Iterate `events` once; `interrupt` may be called at any time from the same event loop."""

    def __init__(self, turn: int, text: str, driver: Driver, open_steps: Callable[[Emit], Steps]) -> None:
        self._turn = turn
        self._text = text
        self._driver = driver
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._last_text = ""
        self._steps = open_steps(self._emit)
        self._task: asyncio.Task[Ending] | None = None
        self._interrupted = False
        self._is_driven = False
        self._started = 0.0

    def interrupt(self) -> None:
        """End the turn soon, with everything recorded; the events end with a TurnFinished. Idempotent."""
        self._interrupted = True
        if self._task is None or self._task.cancelling() or not self._is_driven:
            # Cancelled before its first step, a task runs nothing of itself: neither an Ending nor a record would be left.
            return
        if self._task is asyncio.current_task():
            # Cancelled at once, a driver that ends before it waits again would end as cancelled, its Ending lost.
            asyncio.get_running_loop().call_soon(self._task.cancel)
        else:
            self._task.cancel()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events of the turn in the order of kcode/events.py.

        Closing the generator interrupts the turn and waits until everything is recorded. A bug in a tool or a driver
        is raised here, after recording.
        """
        self._started = time.monotonic()
        self._task = asyncio.create_task(self._drive())
        self._task.add_done_callback(lambda _: self._queue.put_nowait(None))
        try:
            yield TurnStarted(self._turn)
            while (event := await self._queue.get()) is not None:
                yield event
        finally:
            if not self._task.done():
                self.interrupt()
                await asyncio.wait({self._task})
        failure = self._task.exception()
        if failure is not None:
            raise failure
        yield self.finished

    @property
    def finished(self) -> TurnFinished:
        """How the turn ended; only after `events` ended."""
        assert self._task is not None
        failure = self._task.exception()
        if failure is None:
            ending = self._task.result()
        else:
            ending = Ending("error", f"kcode itself failed: {type(failure).__name__}: {failure}")
        result = ending.result or self._last_text
        steps = self._steps
        duration_s = time.monotonic() - self._started
        return TurnFinished(
            self._turn, ending.status, ending.reason, result, steps.usage, steps.step, duration_s, ending.attempts
        )

    async def _drive(self) -> Ending:
        self._is_driven = True
        steps = self._steps
        timer = asyncio.timeout(steps.limits.time_s)
        try:
            async with timer:
                if self._interrupted:
                    raise asyncio.CancelledError
                await steps.look(self._text)
                ending = await self._driver(steps, self._text)
        except TimeoutError:
            if not timer.expired():
                raise
            ending = Ending("limit", f"the turn ran {steps.limits.time_s:g} s, its time limit (--time-limit)")
        except asyncio.CancelledError:
            ending = Ending("interrupted", "the user stopped the turn")
        except LimitReached as reached:
            ending = Ending("limit", str(reached))
        except LoopFound as found:
            ending = Ending("loop", str(found))
        except KcodeError as error:
            self._emit(Notice("error", str(error)))
            ending = Ending("error", str(error))
        finally:
            steps.close_calls(INTERRUPTED if self._interrupted else NOT_RUN)
        return ending

    def _emit(self, event: Event) -> None:
        if isinstance(event, StepFinished) and event.message.text.strip():
            self._last_text = event.message.text.strip()
        self._queue.put_nowait(event)
