"""The worker's one thread of control: descriptors that are ready, and times that have come."""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import time
from collections.abc import Callable

READ_BYTES = 1 << 16


class Timer:
    """Ordered by when it is due, then by `number`."""

    __slots__ = ("action", "cancelled", "due", "number")

    def __init__(self, due: float, number: int, action: Callable[[], None]) -> None:
        self.due = due
        self.number = number
        self.action = action
        self.cancelled = False

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.number) < (other.due, other.number)

    def cancel(self) -> None:
        self.cancelled = True


class Events:
    """A selector loop. Callbacks run one at a time and must not block for long."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._numbers = itertools.count()
        self._running = True

    def on_readable(self, fd: int, action: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, action)

    def on_writable(self, fd: int, action: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_WRITE, action)

    def forget(self, fd: int) -> None:
        self._selector.unregister(fd)

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, next(self._numbers), action)
        heapq.heappush(self._timers, timer)
        return timer

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        while self._running:
            for key, _ in self._selector.select(self._next_due()):
                # An earlier callback of this round may have closed the descriptor or registered another under its number.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            while self._timers and self._timers[0].due <= time.monotonic():
                timer = heapq.heappop(self._timers)
                if not timer.cancelled:
                    timer.action()

    def _next_due(self) -> float | None:
        while self._timers and self._timers[0].cancelled:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].due - time.monotonic()) if self._timers else None


class Reader:
    """Reads a descriptor until its end, then closes it and says so once. Owns the descriptor."""

    def __init__(self, events: Events, fd: int, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._events = events
        self._on_data = on_data
        self._on_end = on_end
        self.fd = fd
        self.open = True
        os.set_blocking(fd, False)
        events.on_readable(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a pty whose last user is gone answers EIO
        if data:
            self._on_data(data)
        else:
            self.close()
            self._on_end()

    def drain(self) -> None:
        """Take what is there now."""
        while self.open:
            before = self.fd
            try:
                data = os.read(before, READ_BYTES)
            except OSError:
                return
            if not data:
                return
            self._on_data(data)

    def close(self) -> None:
        if self.open:
            self.open = False
            self._events.forget(self.fd)
            os.close(self.fd)


class Writer:
    """Writes to a descriptor without blocking, keeping what does not fit. Owns the descriptor.

    A reader that went away makes the rest vanish. `finish` closes after the last byte.
    """

    def __init__(self, events: Events, fd: int) -> None:
        self._events = events
        self._pending = bytearray()
        self._waiting = False
        self._finishing = False
        self.fd = fd
        self.open = True
        os.set_blocking(fd, False)

    @property
    def pending_bytes(self) -> int:
        return len(self._pending)

    def write(self, data: bytes) -> None:
        if self.open:
            self._pending += data
            if not self._waiting:
                self._flush()

    def finish(self) -> None:
        self._finishing = True
        if self.open and not self._pending:
            self.close()

    def close(self) -> None:
        if self.open:
            self.open = False
            self._wait(False)
            os.close(self.fd)

    def _flush(self) -> None:
        try:
            while self._pending:
                count = os.write(self.fd, memoryview(self._pending)[: 1 << 20])
                del self._pending[:count]
        except BlockingIOError:
            self._wait(True)
            return
        except OSError:
            self._pending.clear()
            self.close()
            return
        self._wait(False)
        if self._finishing:
            self.close()

    def _wait(self, wanted: bool) -> None:
        if wanted and not self._waiting:
            self._events.on_writable(self.fd, self._flush)
        elif not wanted and self._waiting:
            self._events.forget(self.fd)
        self._waiting = wanted
