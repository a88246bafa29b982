"""Lines that mean the same: typographic and plain punctuation, composed and decomposed letters, tabs and spaces.

A line is compared by its normal form. `carry` then takes over what the call only repeats from the file's own line, so that
an edit leaves the file's typography as it is.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "),
        "\u2026": "...",
        "\u200b": None,
        "\ufeff": None,
    }
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of a line that is compared as a whole: a letter with its marks, or a run of blanks."""

    normal: str
    source: str


def normal(line: str) -> str:
    """The form by which typographic and plain, composed and decomposed text is the same."""
    return line if line.isascii() else unicodedata.normalize("NFC", line.translate(PUNCTUATION))


def spaced(line: str) -> str:
    """As `normal`, with every run of blanks as one space."""
    return " ".join(normal(line).split())


def units(line: str) -> list[Unit]:
    found: list[Unit] = []
    start = 0
    while start < len(line):
        end = start + 1
        if line[start] in " \t":
            while end < len(line) and line[end] in " \t":
                end += 1
            found.append(Unit(" ", line[start:end]))
        else:
            while end < len(line) and unicodedata.combining(line[end]):
                end += 1
            piece = line[start:end]
            found.append(Unit(normal(piece), piece))
        start = end
    return found


def paired(there: str, called: str) -> Iterator[tuple[str, str]]:
    """What stands for what in two lines of the same normal form: the smallest pieces at which both can be cut."""
    first, second = units(there), units(called)
    one = two = 0
    while one < len(first) or two < len(second):
        left, right = "", ""
        left_source, right_source = "", ""
        while True:
            if len(left) <= len(right) and one < len(first):
                left, left_source = left + first[one].normal, left_source + first[one].source
                one += 1
            elif two < len(second):
                right, right_source = right + second[two].normal, right_source + second[two].source
                two += 1
            else:
                break
            if left == right and left:
                break
        yield left_source, right_source


def differs_in_tabs_alone(there: str, called: str) -> bool:
    """Whether runs of blanks differ only where one of the two has a tab."""
    for left, right in paired(there, called):
        if left != right and (left + right).strip(" \t") == "" and "\t" not in left + right:
            return False
    return True


@dataclass(slots=True)
class Typography:
    """What a call wrote for what the file has, learned from the lines that match."""

    written: dict[str, set[str]] = field(default_factory=dict[str, set[str]])

    def learn(self, there: str, called: str) -> None:
        for left, right in paired(there, called):
            self.written.setdefault(right, set()).add(left)

    def plain(self, text: str) -> str:
        """New text without the typographic signs that, where it can be seen, stood for plain ones of the file."""
        for sign, meant in self.written.items():
            if len(meant) == 1 and len(sign) == 1 and not sign.isascii():
                (own,) = meant
                if own.isascii() and own.strip():
                    text = text.replace(sign, own)
        return text


def carry(there: str, called: str, new: str, typography: Typography) -> str:
    """`new` with the file's own writing wherever it repeats `called`, which stands for the file's line `there`."""
    if there == called:
        return new
    starts: dict[int, int] = {}
    one = two = 0
    for left, right in paired(there, called):
        starts[two] = one
        one, two = one + len(left), two + len(right)
    starts[two] = one
    pieces: list[str] = []
    matcher = difflib.SequenceMatcher(None, called, new, autojunk=False)
    for tag, start, end, new_start, new_end in matcher.get_opcodes():
        if tag != "equal":
            pieces.append(typography.plain(new[new_start:new_end]))
            continue
        cuts = [cut for cut in range(start, end + 1) if cut in starts]
        if not cuts:
            pieces.append(new[new_start:new_end])
            continue
        first, last = cuts[0], cuts[-1]
        pieces.append(new[new_start : new_start + first - start])
        pieces.append(there[starts[first] : starts[last]])
        pieces.append(new[new_end - (end - last) : new_end])
    return "".join(pieces)
