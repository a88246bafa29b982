"""What `str_replace` does to a text, apart from files: the edited text, or a refusal that shows where the edit belongs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from kcode.tools.closest import Closest, closest, has_numbers
from kcode.tools.ladder import Ambiguous, Match, Rung, by_lines, is_within_indent, locate
from kcode.tools.refusal import Refusal
from kcode.tools.syntax import introduced_faults
from kcode.tools.textfile import TextFile
from kcode.tools.truncate import numbered

MIN_SIMILARITY = 0.25
REGION_MARGIN = 2
MAX_REGION_LINES = 60
SHOWN_PLACES = 6
LISTED_PLACES = 40
SHOWN_CHARS = 160


@dataclass(frozen=True, slots=True)
class Edited:
    """The new text; `lines` are its first and last changed line, `places` how many places were changed."""

    content: TextFile
    rung: Rung
    places: int
    lines: tuple[int, int]


class Miss(Refusal):
    """`old` is not in the file."""


def edit(content: TextFile, shown: str, old: str, new: str, *, replace_all: bool = False) -> Edited:
    """`content` with `new` in the place of `old`. Raises Miss or Refusal; `shown` is what they call the file."""
    old, new = plain_ends(old), plain_ends(new)
    if not old:
        raise Refusal("old is empty; name the text to replace, or use insert to add text at a line")
    if old == new:
        raise Refusal("old and new are the same; nothing to do")
    text = content.text
    match locate(text, old, new, replace_all=replace_all):
        case Match() as found:
            return applied(content, better_read(content, shown, found, old, new))
        case Ambiguous() as found:
            raise Refusal(ambiguity(text, found, shown))
        case Closest() as found:
            raise Miss(f"`old` is not in {shown}." + where(text, old, found))


def applied(content: TextFile, found: Match) -> Edited:
    text = content.text
    edited = content.replaced([piece for start, end in found.spans for piece in smallest(text, start, end, found.new)])
    if edited.text == text:
        raise Refusal("this edit changes nothing: the file already has the new text")
    first = text.count("\n", 0, found.spans[0][0]) + 1
    last = first + max(found.new.removesuffix("\n").count("\n"), 0)
    return Edited(edited, found.rung, len(found.spans), (first, last))


def better_read(content: TextFile, shown: str, found: Match, old: str, new: str) -> Match:
    """`found`, or for `old` without its indentation the reading that `new` is without it too, where only that is valid code.

    To put `if y:`, newline, four blanks and `x = 1` for an `x = 1` that is indented means the whole two lines, indented.
    """
    text = content.text
    ((start, _), *others) = found.spans
    if found.rung != "exact" or others or "\n" not in new.strip("\n") or not is_within_indent(text, start):
        return found
    other = by_lines(text, old, new)
    if not isinstance(other, Match) or not introduced_faults(shown, text, applied(content, found).content.text):
        return found
    return found if introduced_faults(shown, text, applied(content, other).content.text) else other


def plain_ends(text: str) -> str:
    """As files are seen inside: LF line ends, no byte order mark."""
    return text.replace("\r\n", "\n").removeprefix("\ufeff")


def smallest(text: str, start: int, end: int, new: str) -> list[tuple[int, int, str]]:
    """What really changes of text[start:end], so that lines which stay keep their own line ends."""
    there, wanted = kept_ends(text[start:end]), kept_ends(new)
    offsets = [start]
    for line in there:
        offsets.append(offsets[-1] + len(line))
    changes: list[tuple[int, int, str]] = []
    matcher = difflib.SequenceMatcher(None, there, wanted, autojunk=False)
    for tag, first, last, new_first, new_last in matcher.get_opcodes():
        if tag == "replace" and last - first == new_last - new_first:
            pairs = zip(range(first, last), wanted[new_first:new_last], strict=True)
            changes += [trimmed(there[index], offsets[index], line) for index, line in pairs]
        elif tag != "equal":
            changes.append(trimmed("".join(there[first:last]), offsets[first], "".join(wanted[new_first:new_last])))
    return [change for change in changes if change[0] < change[1] or change[2]]


def kept_ends(text: str) -> list[str]:
    """Lines with their LF; other line separators do not end one."""
    lines = [line + "\n" for line in text.split("\n")]
    last = lines.pop().removesuffix("\n")
    return [*lines, last] if last else lines


def trimmed(there: str, offset: int, new: str) -> tuple[int, int, str]:
    """The replacement without a common end: a line keeps its line end."""
    if there.endswith("\n") and new.endswith("\n"):
        return offset, offset + len(there) - 1, new[:-1]
    return offset, offset + len(there), new


def ambiguity(text: str, found: Ambiguous, shown: str) -> str:
    lines = text.removesuffix("\n").split("\n")
    listed = ", ".join(str(line) for line in found.lines[:LISTED_PLACES])
    if len(found.lines) > LISTED_PLACES:
        listed += f" and {len(found.lines) - LISTED_PLACES} more"
    way = "add lines around it to `old` until it is unique"
    if found.rung == "exact":
        said = f"`old` stands {len(found.lines)} times in {shown} (lines {listed}); {way}, or set replace_all"
    else:
        said = f"`old` is not in {shown} exactly, and ignoring {found.rung} it matches at lines {listed}; {way}"
    if len(found.lines) > SHOWN_PLACES:
        return said
    places = (numbered(lines[max(line - 1 - REGION_MARGIN, 0) : line], max(line - REGION_MARGIN, 1)) for line in found.lines)
    return said + ":\n" + "\n--\n".join(places)


def where(text: str, old: str, found: Closest) -> str:
    """Where the text probably is, so that the next call can be right."""
    lines = text.removesuffix("\n").split("\n")
    if found.similarity < MIN_SIMILARITY:
        return f" Nothing in its {len(lines)} lines resembles it; read the file first."
    said = f" The closest lines are {found.first_line}-{found.last_line}; copy `old` from them:\n"
    said += shown_region(lines, found)
    called = old.removesuffix("\n").split("\n")
    if has_numbers(called):
        return said + "\nLeave out the line numbers at the start of each line."
    if found.differing:
        offset = found.differing - found.first_line
        if 0 <= offset < len(called) and called[offset] != lines[found.differing - 1]:
            said += f"\nLine {found.differing} is {cut(lines[found.differing - 1])}; `old` has {cut(called[offset])} there."
    return said


def shown_region(lines: list[str], found: Closest) -> str:
    """The region with a margin; of a long one the part around the first line that differs."""
    start = max(found.first_line - REGION_MARGIN, 1)
    end = min(found.last_line + REGION_MARGIN, len(lines))
    if end - start >= MAX_REGION_LINES:
        middle = found.differing or found.first_line
        start = max(start, min(middle - MAX_REGION_LINES // 2, end - MAX_REGION_LINES + 1))
        end = start + MAX_REGION_LINES - 1
    return numbered(lines[start - 1 : end], start)


def cut(line: str) -> str:
    """A line as it is written in code, so that tabs and odd characters show."""
    shown = repr(line)
    return shown if len(shown) <= SHOWN_CHARS else shown[:SHOWN_CHARS] + "…"


def region_now(text: str, old: str) -> str:
    """The lines where an edit of an older version of the text belongs; "" when nothing resembles it."""
    found = closest(text.removesuffix("\n").split("\n"), plain_ends(old).removesuffix("\n").split("\n"))
    return where(text, plain_ends(old), found) if found.similarity >= MIN_SIMILARITY else ""
