"""What the user typed before, kept over sessions in one file of JSON lines."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

KEPT = 1000


class History:
    """Walks back and forth. The text being typed when walking began waits at the end.

    A file that cannot be read or written costs the history, never the session.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries = _load(path)
        self._at = len(self._entries)
        self._draft = ""

    def add(self, text: str) -> None:
        if not self._entries or self._entries[-1] != text:
            self._entries.append(text)
            self._append(text)
        self._at = len(self._entries)

    def back(self, typed: str) -> str | None:
        """The entry before; None at the first."""
        if self._at == 0:
            return None
        if self._at == len(self._entries):
            self._draft = typed
        self._at -= 1
        return self._entries[self._at]

    def forth(self) -> str | None:
        """The entry after, at the end the draft; None when already there."""
        if self._at >= len(self._entries):
            return None
        self._at += 1
        return self._entries[self._at] if self._at < len(self._entries) else self._draft

    def containing(self, typed: str, limit: int) -> list[str]:
        """Those with `typed` in them in any case, each once, the last first."""
        wanted = typed.lower()
        found = (entry for entry in reversed(self._entries) if wanted in entry.lower() and entry != typed)
        return list(islice(dict.fromkeys(found), limit))

    def reset(self) -> None:
        """Back to the end, when the text was edited or sent."""
        self._at = len(self._entries)

    def _append(self, text: str) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if len(self._entries) > 2 * KEPT:
                self._entries = self._entries[-KEPT:]
                neighbour = self._path.with_suffix(".new")
                neighbour.write_text("".join(json.dumps(entry) + "\n" for entry in self._entries), encoding="utf-8")
                neighbour.replace(self._path)
            else:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(text) + "\n")
        except OSError:
            self._path = None


def _load(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    entries: list[str] = []
    for line in lines[-KEPT:]:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, str):
            entries.append(entry)
    return entries
