"""pytest's results from its JUnit XML (made with --tb=short and junit_family=xunit1)."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from kcode.tools.testing.report import FailingTest, Frame, Results

PLACE = re.compile(r"^(?P<path>[^\s:][^:\n]*):(?P<line>\d+): (?:in (?P<function>.+)|(?P<error>\w.*))$")
RUNNING = re.compile(r"^(\S+::.+?) ?$")


def parse(xml: str, log: str) -> Results | None:
    """None when there is no complete XML: the run was cut off or never began."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    failing: list[FailingTest] = []
    passed = failed = errors = skipped = 0
    for case in root.iter("testcase"):
        wrong = [child for child in case if child.tag in {"failure", "error"}]
        if wrong:
            failed += wrong[0].tag == "failure"
            errors += wrong[0].tag == "error"
            failing.append(failing_test(case, wrong[0]))
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return Results(passed, failed, errors, skipped, tuple(failing))


def failing_test(case: ElementTree.Element, wrong: ElementTree.Element) -> FailingTest:
    traceback = wrong.text or ""
    message = error_lines(traceback) or (wrong.get("message") or "").strip() or traceback.strip()[-500:]
    return FailingTest(node_id(case), message, frames(traceback))


def node_id(case: ElementTree.Element) -> str:
    """`tests/test_a.py::Class::test_x`, as pytest takes it on the command line."""
    path, name, owner = case.get("file", ""), case.get("name", ""), case.get("classname", "")
    module = path.removesuffix(".py").replace("/", ".")
    if not owner:
        return path or name
    classes = [part for part in owner.removeprefix(module).split(".") if part] if owner.startswith(module) else []
    return "::".join([path or owner, *classes, name])


def error_lines(traceback: str) -> str:
    """What pytest marks with E, without the mark."""
    lines = [line[1:].removeprefix("   ").rstrip() for line in traceback.split("\n") if line == "E" or line.startswith("E ")]
    text = "\n".join(lines).strip()
    # pytest leaves the type out when the explanation is long, as it is where CI is set.
    text = f"AssertionError: {text}" if text.startswith("assert ") else text
    # What differs is told above the full diff, which repeats both values in full.
    return text.partition("\n  Full diff:")[0].rstrip()


def frames(traceback: str) -> tuple[Frame, ...]:
    """Places given relative to the root, which are those in the workspace, outside its virtual environments."""
    lines = traceback.split("\n")
    found: list[Frame] = []
    for index, line in enumerate(lines):
        place = PLACE.match(line)
        if place is None or place["path"].startswith(("/", "..", "<")) or is_library(place["path"]):
            continue
        following = lines[index + 1] if index + 1 < len(lines) else ""
        source = following.strip() if following.startswith("    ") else ""
        found.append(Frame(place["path"], int(place["line"]), place["function"] or "", source))
    return tuple(found)


def is_library(path: str) -> bool:
    parts = path.split("/")
    return "site-packages" in parts or "node_modules" in parts or parts[0] in {".venv", "venv", "env", ".tox", ".nox"}


def running_test(log: str) -> str:
    """From the log of `pytest -v`: the test whose result is missing; "" when none was under way."""
    last = log.rstrip("\n").rsplit("\n", 1)[-1]
    found = RUNNING.match(last)
    if found is None or last.rstrip().endswith(("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS", "]")):
        return ""
    return found[1]


def counted(log: str) -> Results:
    """Counts of a `pytest -v` log that was cut off before the XML was written."""
    words = re.findall(r"^\S+::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", log, re.MULTILINE)
    failing = re.findall(r"^(\S+::.*?) (?:FAILED|ERROR)\b", log, re.MULTILINE)
    return Results(
        words.count("PASSED"),
        words.count("FAILED"),
        words.count("ERROR"),
        words.count("SKIPPED") + words.count("XFAIL"),
        tuple(FailingTest(name, "(no details: the run was cut off)") for name in failing),
        running_test(log),
    )
