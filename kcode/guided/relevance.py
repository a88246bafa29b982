"""What of the workspace a request is about: functions by what they share with its words, and the text shown to the model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from kcode.guided.suspects import Suspect, functions, words_of
from kcode.repomap import TEST_PATH, SourceFile, is_mentioned, rank, render
from kcode.tools.symbols import Symbol
from kcode.tools.syntax import language_of

NAMED_WEIGHT = 100.0
FILE_WEIGHT = 20.0
# A word of the request in a function's name says more than the same word in its text.
NAME_SHARE = 3.0
MAX_CLASS_LINES = 60
MAP_CHARS = 800
MIN_PART_CHARS = 200
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
CODE_WORD = re.compile(r"`([A-Za-z_$][\w$]*)(?:\([^`]*\))?`|\b([A-Za-z_$][\w$]*)\(|\b([a-z]\w*_\w+|[a-z]+[A-Z]\w*|__\w+__)\b")


def stems(text: str) -> list[str]:
    """The words of a text and of the names in it, lower case and without the commonest English endings."""
    return [stem(part.lower()) for part in PART.findall(text) if len(part) > 2]


def stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def code_names(text: str) -> list[str]:
    """Names of code a text holds: in backticks, before a parenthesis, with an underscore or inner capital; in order."""
    return list(dict.fromkeys(next(filter(None, found)) for found in CODE_WORD.findall(text)))


def editable(file: SourceFile) -> list[Symbol]:
    """What can be written anew as one piece: functions, and classes that are short."""
    classes = [
        symbol for symbol in file.symbols if symbol.kind == "class" and symbol.end_line - symbol.core_line < MAX_CLASS_LINES
    ]
    return functions(file) + classes


def relevant(files: Sequence[SourceFile], request: str) -> list[Suspect]:
    """Functions and short classes, the most relevant to the request first. Tests come last unless the request names them."""
    mentioned = words_of(request)
    wanted = set(stems(request))
    documents = {(file.path, symbol): set(stems(source_of(file, symbol))) for file in files for symbol in editable(file)}
    spread = Counter(word for words in documents.values() for word in words)
    rarity = {word: math.log1p(len(documents) / count) for word, count in spread.items()}
    found: list[Suspect] = []
    for file in files:
        is_test = bool(TEST_PATH.search(file.path))
        for symbol in editable(file):
            weight = NAMED_WEIGHT * (symbol.name in mentioned or symbol.qualified in mentioned)
            weight += NAMED_WEIGHT * ("." in symbol.qualified and symbol.qualified in mentioned)
            weight += FILE_WEIGHT * is_mentioned(file.path, mentioned)
            weight += sum(rarity[word] for word in wanted & documents[file.path, symbol])
            weight += NAME_SHARE * sum(rarity.get(word, 0.0) for word in wanted & set(stems(symbol.name)))
            if symbol.kind == "class" and weight < NAMED_WEIGHT:
                weight /= 2
            found.append(Suspect(file, symbol, weight * (0.1 if is_test and not is_mentioned(file.path, mentioned) else 1.0)))
    found.sort(key=lambda place: (-place.weight, place.path, place.symbol.start_line))
    return found


def source_of(file: SourceFile, symbol: Symbol) -> str:
    return file.text.encode()[symbol.start_byte : symbol.end_byte].decode(errors="replace")


def seed_text(files: Sequence[SourceFile], request: str, told: str, max_chars: int) -> str:
    """For the model: the files the request is about or what matters of them, before them a map of the others.

    What stands in `told` as it is now is not told again. Of files that share no word with the request only the map tells, and of
    tests nothing unless it speaks of them.
    """
    ranked = relevant(files, request)
    shown: list[str] = []
    whole: set[str] = set()
    left = max_chars
    for path in paths_by_weight(ranked):
        file = next(file for file in files if file.path == path)
        text = file.text.rstrip()
        if len(text) <= left:
            whole.add(path)
        else:
            text = parts_within([place for place in ranked if place.path == path], left)
        if not text:
            continue
        left -= len(text)
        shown.append(f"{path}:\n```{language_of(path) or ''}\n{text}\n```")
        if left < MIN_PART_CHARS:
            break
    others = [file for file in files if file.path not in whole and (not TEST_PATH.search(file.path) or "test" in request)]
    overview = f"Files of the repository:\n{render(rank(others, words_of(request)), MAP_CHARS)}" if others else ""
    return "\n\n".join(part for part in (overview, *shown) if part and part not in told)


def paths_by_weight(ranked: Iterable[Suspect]) -> list[str]:
    """Files with a function that has to do with the request, the best first; tests only where there is nothing else."""
    paths = list(dict.fromkeys(place.path for place in ranked if place.weight > 0))
    return [path for path in paths if not TEST_PATH.search(path)] or paths


def parts_within(places: Sequence[Suspect], left: int) -> str:
    """The best functions of one file that fit, in file order."""
    chosen: list[Suspect] = []
    for place in places:
        inside = any(other.symbol.start_byte <= place.symbol.start_byte < other.symbol.end_byte for other in chosen)
        if not inside and place.symbol.kind != "class" and len(place.code) <= left:
            chosen.append(place)
            left -= len(place.code)
    return "\n\n# […]\n\n".join(place.code for place in sorted(chosen, key=lambda place: place.symbol.start_byte))
