"""Edits that must not be made, and the lines that the refusal has to show."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from kcode_bench.edit_case import WORD, Case, Place
from kcode_bench.edit_repairable import Recipe, as_case, ascii_only, plain


def refused(kind: str, place: Place, there: list[str], called: list[str], new: list[str], region: range) -> Case:
    """`there` stands in the file in the place of the block; `region` counts from 0 within it."""
    data = "".join(line + "\n" for line in [*place.before, *there, *place.after])
    name = f"{place.source.name}:{place.first + 1}"
    shown = tuple(place.first + 1 + index for index in region)
    text = "".join(line + "\n" for line in new)
    return Case(name, kind, data.encode(), "".join(line + "\n" for line in called), text, None, shown)


def changed(place: Place) -> list[str]:
    return place.change.made(place.block, place.unit)


def stale_line(place: Place, rng: random.Random) -> Case:
    """A line of the block is another one by now."""
    at = place.change.at
    there = list(place.block)
    there[at] = re.sub(r"\b" + re.escape(place.change.before) + r"\b", "altered", there[at], count=1)
    return refused("stale context", place, there, place.block, changed(place), range(place.count))


def stale_added(place: Place, rng: random.Random) -> Case:
    at = rng.randint(1, place.count - 1)
    there = [*place.block[:at], *["added_later = lookup(added_later)"] * rng.randint(1, 2), *place.block[at:]]
    return refused("stale context", place, there, place.block, changed(place), range(len(there)))


def stale_removed(place: Place, rng: random.Random) -> Case:
    """A line of the block, not its last or first, is gone."""
    at = place.change.at if 0 < place.change.at < place.count - 1 else 1
    there = [*place.block[:at], *place.block[at + 1 :]]
    return refused("stale context", place, there, place.block, changed(place), range(len(there)))


def changed_since_read(place: Place, rng: random.Random) -> Case:
    """The file changed elsewhere after it was read; the block is as it was, but nobody has looked."""
    case = refused("stale file", place, place.block, place.block, changed(place), range(place.count))
    added = b"# another editor was here\n" * rng.randint(1, 30)
    lines = added.count(b"\n")
    return replace(case, data=added + case.data, seen=case.data, region=tuple(line + lines for line in case.region))


def exact_copies(place: Place, rng: random.Random) -> Case:
    lines = [*place.source.lines, *place.block]
    places = (place.first + 1, len(place.source.lines) + 1)
    case = refused("duplicates", place, place.block, place.block, changed(place), range(0))
    return replace(case, data="".join(line + "\n" for line in lines).encode(), places=places)


def loose_copies(place: Place, rng: random.Random) -> Case:
    """Two copies, each of which differs from the call in its blanks, and none fits better."""
    unit = place.unit
    one = [unit + line if line else line for line in place.block]
    two = [unit * 2 + line if line else line for line in place.block]
    lines = [*place.before, *one, *place.after, "if enabled:", *two]
    places = (place.first + 1, len(place.source.lines) + 2)
    case = refused("duplicates", place, one, place.block, changed(place), range(0))
    return replace(case, data="".join(line + "\n" for line in lines).encode(), old=case.old.rstrip("\n") + "  \n", places=places)


def overlapping(place: Place, rng: random.Random) -> Case:
    """Three equal lines, of which two are called."""
    line = place.block[0]
    there = [line] * 3
    case = refused("duplicates", place, there, [line] * 2, [line, f"{line} again"], range(0))
    return replace(case, places=(place.first + 1, place.first + 2))


def uneven(place: Place, rng: random.Random) -> Case:
    """One line of the call stands deeper than the others say: that is another program."""
    at = rng.choice([index for index in range(1, place.count) if place.block[index].strip()])
    called = list(place.block)
    line = called[at]
    called[at] = line.lstrip() if line.startswith(" " * 6) else " " * 6 + line.lstrip()
    new = place.change.made(called, place.unit)
    return refused("indentation", place, place.block, called, new, range(place.count))


def with_numbers(place: Place, rng: random.Random) -> Case:
    called = [f"{place.first + 1 + index}\t{line}" for index, line in enumerate(place.block)]
    new = [f"{place.first + 1 + index}\t{line}" for index, line in enumerate(changed(place))]
    return refused("line numbers", place, place.block, called, new, range(place.count))


def elided(place: Place, rng: random.Random) -> Case:
    """The middle of the block, two lines at least, was left out with dots."""
    kept = place.count // 2
    called = [*place.block[:kept], "    ...", place.block[-1]]
    case = refused("elision", place, place.block, called, [*called[:-1], "done()"], range(place.count))
    return replace(case, region=case.region[:kept])


def of_another_file(place: Place, rng: random.Random) -> Case:
    called = ["zxq_frobnicate(quux, wibble)", "wobble.flurb(zyzzyva)", "kludge[snark] += boojum"]
    return refused("nothing alike", place, place.block, called, ["pass"], range(0))


def other_case(place: Place, rng: random.Random) -> Case:
    called = list(place.block)
    called[place.change.at] = called[place.change.at].swapcase()
    return refused("other letters", place, place.block, called, changed(place), range(place.count))


def double_spaces(place: Place, rng: random.Random) -> Case:
    """Two spaces within a line may be two spaces in a text."""
    at = next(index for index, line in enumerate(place.block) if " " in line.strip())
    called = list(place.block)
    indent = called[at][: len(called[at]) - len(called[at].lstrip())]
    called[at] = indent + called[at].lstrip().replace(" ", "   ")
    return refused("spaces inside", place, place.block, called, place.change.made(called, place.unit), range(place.count))


def escaped(place: Place, rng: random.Random) -> Case:
    """The line ends were written as backslash and n."""
    case = refused("escapes", place, place.block, place.block, changed(place), range(place.count))
    return replace(case, old="\\n".join(place.block), new="\\n".join(changed(place)))


def not_in_the_encoding(place: Place, rng: random.Random) -> Case:
    lines = [line if line.isascii() else "" for line in place.source.lines]
    data = "".join(line + "\n" for line in [*lines, "# caf\u00e9"]).encode("latin-1")
    new = "".join(line + "\n" for line in [*changed(place), "arrow = '\u2192'"])
    return replace(as_case("encoding", place, plain(place)), data=data, new=new, expected=None)


def is_deep(block: list[str]) -> bool:
    return sum(bool(line.strip()) for line in block) >= 3


def has_words(block: list[str]) -> bool:
    """Every line can be told from others, so that the place of the block is beyond doubt."""
    return sum(len(set(WORD.findall(line))) >= 3 for line in block) >= 3


def starts_with_words(block: list[str]) -> bool:
    return len(block) >= 6 and all(len(set(WORD.findall(line))) >= 3 for line in block[: len(block) // 2])


def in_order(*checks: Callable[[list[str]], bool]) -> Callable[[list[str]], bool]:
    return lambda block: all(check(block) for check in checks)


def has_inner_space(block: list[str]) -> bool:
    return any(" " in line.strip() for line in block)


REFUSED = (
    Recipe(stale_line, has_words, share=6),
    Recipe(stale_added, has_words, share=4),
    Recipe(stale_removed, has_words, share=4),
    Recipe(changed_since_read, has_words, share=3),
    Recipe(exact_copies, share=3),
    Recipe(loose_copies, share=2),
    Recipe(overlapping, share=1),
    Recipe(uneven, in_order(is_deep, has_words), share=3),
    Recipe(with_numbers, has_words, share=2),
    Recipe(elided, starts_with_words, share=1),
    Recipe(of_another_file, share=1),
    Recipe(other_case, has_words, share=2),
    Recipe(double_spaces, in_order(has_words, has_inner_space), share=2),
    Recipe(escaped, has_words, share=1),
    Recipe(not_in_the_encoding, ascii_only, share=1),
)
