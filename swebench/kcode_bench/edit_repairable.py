"""Edits that a reader would put right without a question, and the one file that comes of each."""

from __future__ import annotations

import ast
import codecs
import random
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kcode_bench.edit_case import Case, Place

CURLY = {"'": "\u2019", '"': "\u201d", "-": "\u2013", " ": "\u00a0"}
FOREIGN = {"koi8-r": "\u043a\u043e\u0434", "shift_jis": "\u8868\u793a", "cp1252": "\u201cna\u00efve\u201d"}
LETTERS = "\u00e9\u00e8\u00fc\u00f1\u00e5"


@dataclass(frozen=True, slots=True)
class Written:
    """A place as the file has it and as the call has it: two writings of the same lines, line by line.

    `kept_typography` says that a changed line keeps the file's signs where the call repeats them.
    """

    there: list[str]
    called: list[str]
    unit: str
    called_unit: str


def lines_after(written: Written, place: Place) -> list[str]:
    """The block after the change: untouched lines as in the file, changed ones with the call's own trailing blanks."""
    change = place.change
    made = change.made(written.there, written.unit)
    called = change.made(written.called, written.called_unit)
    if change.kind == "word":
        body = made[change.at].rstrip()
        tail = called[change.at][len(called[change.at].rstrip()) :]
        made[change.at] = body + tail if called[change.at] != written.called[change.at] else made[change.at]
    if change.kind in {"insert", "nest"}:
        made[change.at] = written.there[change.at]
    return made


def as_case(kind: str, place: Place, written: Written) -> Case:
    before, after = place.before, place.after
    on_disk = "\n".join([*before, *written.there, *after]) + "\n"
    expected = "\n".join([*before, *lines_after(written, place), *after]) + "\n"
    old = "\n".join(written.called) + "\n"
    new = "".join(line + "\n" for line in place.change.made(written.called, written.called_unit))
    name = f"{place.source.name}:{place.first + 1}"
    return Case(name, kind, on_disk.encode(), old, new, expected.encode())


def plain(place: Place) -> Written:
    return Written(place.block, place.block, place.unit, place.unit)


def exact(place: Place, rng: random.Random) -> Case:
    return as_case("exact", place, plain(place))


def trailing_there(place: Place, rng: random.Random) -> Case:
    tails = [rng.choice(("", " ", "   ", "\t")) for _ in place.block]
    tails[rng.randrange(len(tails))] = "  "
    there = [line + tail for line, tail in zip(place.block, tails, strict=True)]
    return as_case("trailing whitespace", place, replace(plain(place), there=there))


def trailing_called(place: Place, rng: random.Random) -> Case:
    called = [line + rng.choice(("", " ", "  ")) for line in place.block]
    called[0] = place.block[0] + "  "
    return as_case("trailing whitespace", place, replace(plain(place), called=called))


def blank_lines_with_spaces(place: Place, rng: random.Random) -> Case:
    filled = [line or "    " for line in place.block]
    written = plain(place)
    return as_case("whitespace", place, rng.choice((replace(written, there=filled), replace(written, called=filled))))


def dedented(place: Place, rng: random.Random) -> Case:
    called = textwrap.dedent("\n".join(place.block)).split("\n")
    return as_case("indentation", place, replace(plain(place), called=called))


def shifted(place: Place, rng: random.Random) -> Case:
    more = rng.choice((place.unit, place.unit * 2, place.unit * 3))
    called = [more + line if line else line for line in place.block]
    return as_case("indentation", place, replace(plain(place), called=called))


def in_other_units(place: Place, rng: random.Random) -> Case:
    """The file indents by one unit, the call by another."""
    unit = rng.choice([unit for unit in ("  ", "    ", "\t") if unit != place.unit])
    called = [reindented(line, place.unit, unit) for line in place.block]
    return as_case(
        "tabs" if "\t" in unit + place.unit else "indentation", place, replace(plain(place), called=called, called_unit=unit)
    )


def with_tabs(place: Place, rng: random.Random) -> Case:
    """The whole file is indented by tabs, the call by spaces, perhaps one level out."""
    changed = with_unit(place, "\t")
    unit = rng.choice(("    ", "        ", "  "))
    called = [reindented(line, "\t", unit) for line in changed.block]
    if rng.random() < 0.3:
        called = textwrap.dedent("\n".join(called)).split("\n")
    return as_case("tabs", changed, replace(plain(changed), called=called, called_unit=unit))


def with_unit(place: Place, unit: str) -> Place:
    lines = tuple(reindented(line, place.unit, unit) for line in place.source.lines)
    return replace(place, source=replace(place.source, lines=lines), unit=unit)


def reindented(line: str, old: str, new: str) -> str:
    depth = 0
    while line.startswith(old, depth * len(old)):
        depth += 1
    return new * depth + line[depth * len(old) :]


def is_regular(unit: str) -> Callable[[list[str]], bool]:
    """Whether every line is indented by whole units, and more than one depth is seen."""

    def check(block: list[str]) -> bool:
        indents = {line[: len(line) - len(line.lstrip())] for line in block if line.strip()}
        return len(indents) > 1 and all(indent == unit * (len(indent) // len(unit)) for indent in indents)

    return check


def tabs_inside(place: Place, rng: random.Random) -> Case:
    """A line has a tab between its words where the call has spaces."""
    at = next(index for index, line in enumerate(place.block) if " = " in line.strip())
    there = list(place.block)
    there[at] = there[at].replace(" = ", "\t= ", 1)
    called = list(place.block)
    called[at] = called[at].replace(" = ", "    = ", 1)
    return as_case("tabs", place, replace(plain(place), there=there, called=called))


def curly_there(place: Place, rng: random.Random) -> Case:
    """The file has typographic signs in what the change leaves alone; the call writes plain ones."""
    there = [
        typographic(line, rng, place.change.kind == "word" and index == place.change.at) for index, line in enumerate(place.block)
    ]
    return as_case("unicode punctuation", place, replace(plain(place), there=there))


def curly_called(place: Place, rng: random.Random) -> Case:
    """The call has typographic quotes throughout where the file has plain ones."""
    table = str.maketrans({"'": "\u2019", '"': "\u201d"})
    called = [line.translate(table) for line in place.block]
    return as_case("unicode punctuation", place, replace(plain(place), called=called))


def typographic(line: str, rng: random.Random, is_changed: bool) -> str:
    """With some signs in their typographic form; a line that changes keeps its word boundaries."""
    indent = line[: len(line) - len(line.lstrip())]
    signs = "'\"" if is_changed else "'\"- "
    body = "".join(CURLY[char] if char in signs and rng.random() < 0.5 else char for char in line[len(indent) :])
    return indent + body


def has_signs(block: list[str]) -> bool:
    return any(sign in line for line in block for sign in "'\"")


def decomposed(place: Place, rng: random.Random) -> Case:
    """The file has letters and marks apart, the call together, or the other way round."""
    index = rng.choice([index for index in range(place.count) if index != place.change.at])
    block = list(place.block)
    block[index] += f"  # caf{LETTERS[rng.randrange(len(LETTERS))]} na\u00efve"
    apart = [unicodedata.normalize("NFD", line) for line in block]
    there, called = rng.choice(((apart, block), (block, apart)))
    return as_case("unicode form", place, replace(plain(place), there=there, called=called))


def zero_width(place: Place, rng: random.Random) -> Case:
    """Not within the indentation, which new lines of the call are written after."""
    called = list(place.block)
    middle = (len(called[0]) - len(called[0].lstrip()) + len(called[0])) // 2
    called[0] = called[0][:middle] + "\u200b" + called[0][middle:]
    if place.change.kind == "word" and place.change.at == 0:
        called = [*called[:-1], called[-1] + "\u200b"]
        called[0] = place.block[0]
    return as_case("unicode punctuation", place, replace(plain(place), called=called))


def crlf_there(place: Place, rng: random.Random) -> Case:
    return crlf(as_case("line ends", place, plain(place)))


def crlf(case: Case) -> Case:
    assert case.expected is not None
    return replace(case, data=case.data.replace(b"\n", b"\r\n"), expected=case.expected.replace(b"\n", b"\r\n"))


def crlf_called(place: Place, rng: random.Random) -> Case:
    case = as_case("line ends", place, plain(place))
    return replace(case, old=case.old.replace("\n", "\r\n"), new=case.new.replace("\n", "\r\n"))


def mixed_ends(place: Place, rng: random.Random) -> Case:
    """Some lines of the file end in CRLF; each keeps its end, and new ones end as most do."""
    written = plain(place)
    before, after = place.before, place.after
    total = len(place.source.lines)
    crlf_lines = {index for index in range(total) if rng.random() < 0.25}
    marks = ["\r" if index in crlf_lines else "" for index in range(total)]
    there = [line + mark for line, mark in zip(place.source.lines, marks, strict=True)]
    data = "".join(line + "\n" for line in there)
    block = there[place.first : place.first + place.count]
    change = place.change
    made = change.made([line.removesuffix("\r") for line in block], place.unit)
    ends = [line.endswith("\r") for line in block]
    if change.kind == "delete":
        ends.pop(change.at)
    ends = [*ends[: change.at + 1], *[False] * (len(made) - len(ends)), *ends[change.at + 1 :]]
    done = [line + ("\r" if end else "") for line, end in zip(made, ends, strict=True)]
    expected = "".join(line + "\n" for line in [*there[: len(before)], *done, *there[len(there) - len(after) :]])
    case = as_case("line ends", place, written)
    return replace(case, data=data.encode(), expected=expected.encode())


def cr_alone(place: Place, rng: random.Random) -> Case:
    case = as_case("line ends", place, plain(place))
    assert case.expected is not None
    return replace(case, data=case.data.replace(b"\n", b"\r"), expected=case.expected.replace(b"\n", b"\r"))


def marked(place: Place, rng: random.Random) -> Case:
    """A byte order mark before the text, perhaps repeated by the call, which begins with the file's first line."""
    top = replace(place, source=replace(place.source, lines=place.source.lines[place.first :]), first=0)
    case = as_case("byte order mark", top, plain(top))
    assert case.expected is not None
    in_call = "\ufeff" if rng.random() < 0.5 else ""
    mark = codecs.BOM_UTF8
    return replace(case, data=mark + case.data, expected=mark + case.expected, old=in_call + case.old, new=in_call + case.new)


def encoded(place: Place, rng: random.Random) -> Case:
    """A file in another encoding, with letters that need it."""
    encoding = rng.choice(("latin-1", "cp1252", "utf-16-le", "utf-16-be", "koi8-r", "shift_jis"))
    letters = FOREIGN.get(encoding, "na\u00efve")
    head = [f"# -*- coding: {encoding} -*-"] if encoding in {"koi8-r", "shift_jis"} else []
    index = rng.choice([index for index in range(place.count) if index != place.change.at])
    lines = [line if line.isascii() else "" for line in place.source.lines]
    lines[place.first + index] += f"  # {letters}"
    source = replace(place.source, lines=(*head, *lines))
    moved = replace(place, source=source, first=place.first + len(head))
    case = as_case("encoding", moved, plain(moved))
    assert case.expected is not None
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    return replace(case, data=mark + case.data.decode().encode(encoding), expected=mark + case.expected.decode().encode(encoding))


def at_the_end(place: Place, rng: random.Random) -> Case:
    """The last lines of a file without a final newline; the call has one, or has blank lines too many."""
    source = replace(place.source, lines=place.source.lines[: place.first + place.count])
    last = replace(place, source=source)
    case = as_case("trailing newline", last, plain(last))
    assert case.expected is not None
    ended = rng.random() < 0.3
    tail = rng.choice(("", "\n", "\n\n")) if ended else rng.choice(("", "\n"))
    data, expected = (case.data, case.expected) if ended else (case.data[:-1], case.expected[:-1])
    return replace(case, data=data, expected=expected, old=case.old + tail, new=case.new + tail)


def blank_edges(place: Place, rng: random.Random) -> Case:
    case = as_case("blank lines", place, plain(place))
    head, tail = rng.choice((("\n\n\n", ""), ("\n\n\n", "\n\n\n"), ("", "\n\n\n\n")))
    return replace(case, old=head + case.old + tail, new=head + case.new + tail)


def without_last_end(place: Place, rng: random.Random) -> Case:
    case = as_case("exact", place, plain(place))
    if place.change.kind == "delete" and place.change.at == place.count - 1:
        return case
    return replace(case, old=case.old[:-1], new=case.new[:-1])


def trimmed_start(place: Place, rng: random.Random) -> Case:
    """The call lost the blanks before its first line alone."""
    case = as_case("whitespace", place, plain(place))
    if place.change.kind == "delete" and place.change.at == 0:
        return case
    if rng.random() < 0.5:
        case = as_case("whitespace", place, replace(plain(place), there=[line + " " for line in place.block]))
    return replace(case, old=case.old.lstrip(" \t"), new=case.new.lstrip(" \t"))


def one_line_wrapped(place: Place, rng: random.Random) -> Case:
    """One line without its indentation, to be put under a condition that is written without it too."""
    line = place.block[0]
    indent = line[: len(line) - len(line.lstrip())]
    data = "".join(line + "\n" for line in place.source.lines)
    wrapped = [f"{indent}if enabled:", f"{indent}{place.unit}{line.lstrip()}"]
    expected = "".join(line + "\n" for line in [*place.before, *wrapped, *place.block[1:], *place.after])
    new = f"if enabled:\n{place.unit}{line.lstrip()}"
    name = f"{place.source.name}:{place.first + 1}"
    return Case(name, "indentation", data.encode(), line.lstrip(), new, expected.encode())


def is_statement(block: list[str]) -> bool:
    """Whether the first line is a whole statement within a function."""
    try:
        ast.parse(block[0].strip())
    except SyntaxError:
        return False
    is_code = " = " in block[0] and len(block[0].split()) > 3 and not block[0].endswith((";", ","))
    return (
        block[0].startswith("    ")
        and is_code
        and not block[1].startswith(block[0][: len(block[0]) - len(block[0].lstrip())] + " ")
    )


def fragment(place: Place, rng: random.Random) -> Case:
    """A piece of a line, from its second word on."""
    case = as_case("exact", place, plain(place))
    cut = len(place.block[0]) - len(place.block[0].lstrip()) + 1
    if place.change.at == 0:
        return case
    return replace(case, old=case.old[cut:], new=case.new[cut:])


def every_copy(place: Place, rng: random.Random) -> Case:
    """The block stands three times, and all are to change."""
    case = as_case("duplicates", place, plain(place))
    lines = place.source.lines
    made = place.change.made(place.block, place.unit)
    blocks = [lines[: place.first], place.block, lines[place.first + place.count :], place.block, lines[:1], place.block]
    done = [lines[: place.first], made, lines[place.first + place.count :], made, lines[:1], made]
    data = "".join(line + "\n" for block in blocks for line in block)
    expected = "".join(line + "\n" for block in done for line in block)
    return replace(case, data=data.encode(), expected=expected.encode(), replace_all=True)


def several_slips(place: Place, rng: random.Random) -> Case:
    """Shifted, with other trailing blanks, in a file of CRLF lines."""
    more = place.unit * rng.randint(1, 2)
    called = [more + line + rng.choice(("", " ")) if line else line for line in place.block]
    there = [line + rng.choice(("", "  ")) for line in place.block]
    case = as_case("several", place, replace(plain(place), there=there, called=called))
    return crlf(case) if rng.random() < 0.5 else case


def curly_and_shifted(place: Place, rng: random.Random) -> Case:
    there = [typographic(line, rng, is_changed=True) for line in place.block]
    called = textwrap.dedent("\n".join(place.block)).split("\n")
    return as_case("several", place, replace(plain(place), there=there, called=called))


def copy_elsewhere_differs(place: Place, rng: random.Random) -> Case:
    """The block stands a second time with other indentation: only the exact one may change."""
    copy = ["if enabled:", *[place.unit + line + " " if line else line for line in place.block]]
    source = replace(place.source, lines=(*place.source.lines, *copy))
    return as_case("duplicates", replace(place, source=source), plain(place))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a kind of case is made, from places that `accept` takes; `share` is its weight in the corpus."""

    make: Callable[[Place, random.Random], Case]
    accept: Callable[[list[str]], bool] = field(default=bool)
    share: int = 2
    regular: bool = False


def indented(block: list[str]) -> bool:
    return all(not line or line[0] in " \t" for line in block)


def ascii_only(block: Sequence[str]) -> bool:
    return all(line.isascii() for line in block)


def plain_quotes(block: list[str]) -> bool:
    return has_signs(block) and ascii_only(block)


REPAIRABLE = (
    Recipe(exact),
    Recipe(trailing_there, share=3),
    Recipe(trailing_called, share=3),
    Recipe(blank_lines_with_spaces, lambda block: "" in block),
    Recipe(dedented, indented, share=4),
    Recipe(shifted, share=3),
    Recipe(in_other_units, regular=True, share=4),
    Recipe(with_tabs, regular=True, share=4),
    Recipe(tabs_inside, lambda block: any(" = " in line.strip() for line in block)),
    Recipe(curly_there, plain_quotes, share=3),
    Recipe(curly_called, plain_quotes, share=3),
    Recipe(decomposed, share=3),
    Recipe(zero_width, ascii_only),
    Recipe(crlf_there),
    Recipe(crlf_called),
    Recipe(mixed_ends),
    Recipe(cr_alone, share=1),
    Recipe(marked),
    Recipe(encoded, ascii_only, share=3),
    Recipe(at_the_end, share=3),
    Recipe(blank_edges),
    Recipe(without_last_end, share=1),
    Recipe(trimmed_start, indented),
    Recipe(fragment, share=1),
    Recipe(one_line_wrapped, is_statement),
    Recipe(every_copy, share=1),
    Recipe(several_slips, share=3),
    Recipe(curly_and_shifted, lambda block: plain_quotes(block) and indented(block), share=2),
    Recipe(copy_elsewhere_differs),
)
