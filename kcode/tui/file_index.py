"""Finding files by a few letters of their path, quick enough for every keystroke among 100,000 files."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

CONSIDERED = 300
"""Of each kind of match; what comes first in the list of files is considered first."""


class FileIndex:
    """`paths` in the order of preference among equals, "/" between folders."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        # Every path has a "/" before it, so that a name's beginning is found in any folder, and stands between newlines.
        self._text = "\n" + "".join(f"/{_lowered(path)}\n" for path in paths)
        self._starts: list[int] = []
        at = 1
        for path in paths:
            self._starts.append(at)
            at += len(path) + 2

    def find(self, typed: str, limit: int) -> list[str]:
        """The best first: a name that begins with it, a path that contains it, a path that has its letters in this order."""
        wanted = typed.lower()
        if not wanted:
            return list(self._paths[:limit])
        found: dict[int, None] = dict.fromkeys(self._numbers(self._places(f"/{wanted}")))
        if len(found) < limit:
            found |= dict.fromkeys(self._numbers(self._places(wanted)))
        if len(found) < limit:
            found |= dict.fromkeys(self._numbers(match.end() - 1 for match in self._scattered(wanted)))
        ranked = sorted(found, key=lambda number: self._rank(number, wanted))
        return [self._paths[number] for number in ranked[:limit]]

    def _rank(self, number: int, wanted: str) -> tuple[bool, bool, bool, int, int]:
        path = self._paths[number].lower()
        name = path.rpartition("/")[2]
        return not name.startswith(wanted), wanted not in name, wanted not in path, len(path), number

    def _numbers(self, places: Iterable[int]) -> Iterator[int]:
        return (bisect_right(self._starts, place) - 1 for place in islice(places, CONSIDERED))

    def _places(self, wanted: str) -> Iterator[int]:
        """Where it stands, once for each path."""
        at = self._text.find(wanted)
        while at >= 0:
            yield at
            end = self._text.find("\n", at)
            at = self._text.find(wanted, end)

    def _scattered(self, wanted: str) -> Iterator[re.Match[str]]:
        if not all(letter in self._text for letter in wanted):
            return iter(())
        first, *rest = map(re.escape, wanted)
        # Never back within a try, so that the time does not explode with what is typed.
        pattern = first + "".join(f"[^\\n{letter}]*+{letter}" for letter in rest)
        return re.finditer(f"{pattern}[^\\n]*+", self._text)


def _lowered(path: str) -> str:
    """In lower case and as long as before: the lower case of some letters is two."""
    lowered = path.lower()
    return (
        lowered if len(lowered) == len(path) else "".join(low if len(low := letter.lower()) == 1 else letter for letter in path)
    )
