"""Output of a program, kept within a bound by dropping the middle."""

from __future__ import annotations

from collections import deque


class Capture:
    """Keeps the first and the last half of `max_bytes`; `dropped_bytes` counts what fell out between."""

    def __init__(self, max_bytes: int) -> None:
        self._half = max(max_bytes // 2, 1)
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.dropped_bytes = 0

    def add(self, data: bytes) -> None:
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if not data:
            return
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes > self._half:
            excess = self._tail_bytes - self._half
            first = self._tail[0]
            if len(first) <= excess:
                self._tail.popleft()
            else:
                self._tail[0] = first[excess:]
            cut = min(len(first), excess)
            self._tail_bytes -= cut
            self.dropped_bytes += cut

    def take(self) -> bytes:
        """What was kept; the capture is empty afterwards but goes on counting dropped bytes."""
        data = bytes(self._head) + b"".join(self._tail)
        self._head.clear()
        self._tail.clear()
        self._tail_bytes = 0
        return data
