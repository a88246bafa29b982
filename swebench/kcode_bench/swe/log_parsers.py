"""What a test run's output says of each test: the rules by which the official harness reads logs, for Python's runners."""

from __future__ import annotations

import re
from collections.abc import Callable

from kcode.errors import StartError

Statuses = dict[str, str]
"""By test. A line that merely begins with a status, such as pytest's "ERROR: not found", leaves its first word instead of one, as
with the official parsers: such a word is neither a success nor a failure."""
Parser = Callable[[str], Statuses]

STATUSES = ("FAILED", "PASSED", "SKIPPED", "ERROR", "XFAIL")
COUNT = re.compile(r"\[\d+\]")
COLOUR = re.compile(r"\[\d+m")
CONTROL = dict.fromkeys(range(1, 32))
OPTION = re.compile(r"(.*?)\[(.*)\]")
SYMPY_HEADING = re.compile(r"(_*) (.*)\.py:(.*) (_*)")
DJANGO_OK = (" ... ok", " ... OK", " ...  OK")
# Output of Django's own between a test's name and its "ok", which then stands on a line of its own.
DJANGO_SPLIT = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^(.*?)\s\.\.\.\sTesting against Django installed in (?:(?s:.*?)) silenced\)\.\nok$",
        r"^(.*?)\s\.\.\.\sInternal Server Error: /(?:.*)/\nok$",
        r"^(.*?)\s\.\.\.\sSystem check identified no issues \(0 silenced\)\nok$",
    )
)
DJANGO_MIGRATION = "Applying sites.0002_alter_domain_unique...test_no_migrations"
DJANGO_VERSION = "--version is equivalent to version"


def _summary(line: str) -> tuple[str, list[str]] | None:
    """A line of pytest's short summary: its status, and the words after it, the first of which is the test."""
    if not line.startswith(STATUSES):
        return None
    words = (line.replace(" - ", " ") if line.startswith("FAILED") else line).split()
    if len(words) < 2 or (words[0] == "SKIPPED" and COUNT.fullmatch(words[1])):
        return None
    return words[0], words[1:]


def parse_pytest(log: str) -> Statuses:
    """pytest -rA: a status, then the test up to the next space."""
    found = filter(None, map(_summary, log.split("\n")))
    return {words[0]: status for status, words in found}


def parse_pytest_options(log: str) -> Statuses:
    """As parse_pytest; a parameter that is a path counts by its last name, since the path is another on every machine."""
    return {_without_folder(name): status for name, status in parse_pytest(log).items()}


def _without_folder(name: str) -> str:
    match = OPTION.search(name)
    if match is None:
        return name
    head, option = match.groups()
    if option.startswith("/") and not option.startswith("//") and "*" not in option:
        option = "/" + option.rpartition("/")[2]
    return f"{head}[{option}]"


def parse_pytest_v2(log: str) -> Statuses:
    """pytest with colours and with spaces in names; older versions write the status behind the name."""
    found: Statuses = {}
    for raw in log.split("\n"):
        line = COLOUR.sub("", raw).translate(CONTROL)
        if line.startswith(STATUSES):
            words = (line.split(" - ", 1)[0] if line.startswith("FAILED") else line).split()
            if len(words) > 1 and not (words[0] == "SKIPPED" and COUNT.fullmatch(words[1])):
                found[" ".join(words[1:])] = words[0]
        elif line.endswith(STATUSES):
            words = line.split()
            if len(words) > 1:
                found[" ".join(words[:-1])] = words[-1]
    return found


def parse_matplotlib(log: str) -> Statuses:
    """As parse_pytest, with mouse buttons by their numbers."""
    return parse_pytest(log.replace("MouseButton.LEFT", "1").replace("MouseButton.RIGHT", "3"))


def parse_seaborn(log: str) -> Statuses:
    """Both "PASSED name" and "name PASSED"."""
    found: Statuses = {}
    for line in log.split("\n"):
        words = line.split()
        if len(words) < 2:
            continue
        if line.startswith("FAILED"):
            found[words[1]] = "FAILED"
        elif " PASSED " in line:
            if words[1] == "PASSED":
                found[words[0]] = "PASSED"
        elif line.startswith("PASSED"):
            found[words[1]] = "PASSED"
    return found


def parse_django(log: str) -> Statuses:
    """unittest with -v 2: "name (class) ... ok", and what Django prints in between."""
    found: Statuses = {}
    before: str | None = None
    for raw in log.split("\n"):
        line = raw.strip()
        if DJANGO_VERSION in line:
            found[DJANGO_VERSION] = "PASSED"
        if " ... " in line:
            before = line.split(" ... ")[0]
        ending = next((ending for ending in DJANGO_OK if line.endswith(ending)), None)
        if ending is not None:
            kept = line.split("...", 1)[-1].strip() if line.startswith(DJANGO_MIGRATION) else line
            found[kept.rsplit(ending, 1)[0]] = "PASSED"
        if " ... skipped" in line:
            found[line.split(" ... skipped")[0]] = "SKIPPED"
        for word, status in (("FAIL", "FAILED"), ("ERROR", "ERROR")):
            if line.endswith(f" ... {word}"):
                found[line.split(f" ... {word}")[0]] = status
            if line.startswith(f"{word}:") and len(line.split()) > 1:
                found[line.split()[1]] = status
        if line.startswith("ok") and before is not None:
            found[before] = "PASSED"
    for pattern in DJANGO_SPLIT:
        found |= {match[1]: "PASSED" for match in pattern.finditer(log)}
    return found


def parse_sympy(log: str) -> Statuses:
    """sympy's bin/test --verbose; a heading of the failures names file and test."""
    found: Statuses = {f"{match[2]}.py:{match[3]}": "FAILED" for match in SYMPY_HEADING.finditer(log)}
    endings = {" E": "ERROR", " F": "FAILED", " ok": "PASSED"}
    for raw in log.split("\n"):
        line = raw.strip()
        ending = next((ending for ending in endings if line.endswith(ending)), None)
        if line.startswith("test_") and ending is not None:
            found[line.split()[0]] = endings[ending]
    return found


PARSERS: dict[str, Parser] = {
    "pytest": parse_pytest,
    "pytest_options": parse_pytest_options,
    "pytest_v2": parse_pytest_v2,
    "matplotlib": parse_matplotlib,
    "seaborn": parse_seaborn,
    "django": parse_django,
    "sympy": parse_sympy,
}
# Names that data sets use beside those.
ALIASES = {
    **dict.fromkeys(("astroid", "flask", "marshmallow", "pvlib", "pyvista", "sqlfluff", "xarray"), "pytest"),
    **dict.fromkeys(("pydicom", "requests", "pylint"), "pytest_options"),
    **dict.fromkeys(("astropy", "scikit", "sphinx"), "pytest_v2"),
}


def parser_named(name: str) -> Parser:
    """By our own name or by that of a data set's log_parser column. Raises StartError listing the known ones."""
    short = name.removeprefix("parse_log_")
    parser = PARSERS.get(ALIASES.get(short, short))
    if parser is None:
        raise StartError(f"there is no log parser {name!r}; known: {', '.join(PARSERS)}")
    return parser
