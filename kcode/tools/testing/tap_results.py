"""Results of `node --test` from its TAP output."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kcode.tools.testing.report import FailingTest, Frame, Results

POINT = re.compile(r"^(?P<indent> *)(?P<result>ok|not ok) \d+ - (?P<name>.*?)(?: # (?P<directive>SKIP|TODO).*)?$")
SUBTEST = re.compile(r"^(?P<indent> *)# Subtest: (?P<name>.*)$")
KEY = re.compile(r"^ *(?P<key>\w+):(?: (?P<value>.*))?$")
STACK = re.compile(r"^(?:at )?(?:(?P<function>.+?) )?\(?(?:file://)?(?P<path>/[^():]+):(?P<line>\d+):\d+\)?$")
SUMMARY = re.compile(r"^# (tests|suites|pass|fail|cancelled|skipped|todo) (\d+)$", re.MULTILINE)
KEPT_KEYS = ("error", "expected", "actual")
INDENT = 4


@dataclass(slots=True)
class Point:
    """One line of TAP and the YAML block below it."""

    name: str
    ok: bool
    skipped: bool
    detail: dict[str, str] = field(default_factory=dict[str, str])


def parse(log: str, workspace: str) -> Results | None:
    """None when the output is no TAP."""
    if "TAP version" not in log:
        return None
    points, running = read_points(log.split("\n"))
    failing: list[FailingTest] = []
    passed = failed = errors = skipped = 0
    comments = "\n".join(line[2:] for line in log.split("\n") if is_complaint(line))
    for point in points:
        kind = point.detail.get("failureType", "")
        if point.detail.get("type") == "suite" and kind in {"", "subtestsFailed"}:
            continue
        if point.skipped:
            skipped += 1
        elif point.ok:
            passed += 1
        elif kind == "subtestsFailed":
            continue
        else:
            is_file = point.detail.get("error") == "test failed"
            errors += is_file
            failed += not is_file
            failing.append(failing_test(point, workspace, comments if is_file else ""))
    finished = SUMMARY.search(log) is not None
    return Results(passed, failed, errors, skipped, tuple(failing), "" if finished else running)


def is_complaint(line: str) -> bool:
    """What a test file printed when it could not be loaded: no counts, no subtests, no frames of node itself."""
    noise = SUBTEST.match(line) or SUMMARY.match(line) or line.startswith(("# duration_ms", "# Node.js v")) or "(node:" in line
    return line.startswith("# ") and not noise and " at node:" not in line


def read_points(lines: list[str]) -> tuple[list[Point], str]:
    """All test points, their names joined with those of the suites around them, and the last one begun."""
    open_names: list[str] = []
    points: list[Point] = []
    running = ""
    index = 0
    while index < len(lines):
        line = lines[index]
        index += 1
        if (begun := SUBTEST.match(line)) is not None:
            depth = len(begun["indent"]) // INDENT
            open_names[depth:] = [begun["name"]]
            running = " > ".join(open_names)
        elif (found := POINT.match(line)) is not None:
            depth = len(found["indent"]) // INDENT
            name = " > ".join([*open_names[:depth], found["name"]])
            point = Point(name, found["result"] == "ok", found["directive"] is not None)
            index = read_detail(lines, index, len(found["indent"]) + 2, point.detail)
            points.append(point)
    return points, running


def read_detail(lines: list[str], index: int, indent: int, detail: dict[str, str]) -> int:
    """The YAML block that starts at `index`, if one does; returns the index behind it."""
    margin = " " * indent
    if index >= len(lines) or lines[index] != margin + "---":
        return index
    index += 1
    key = ""
    while index < len(lines) and lines[index] != margin + "...":
        line = lines[index]
        index += 1
        found = KEY.match(line) if line.startswith(margin) and not line.startswith(margin + " ") else None
        if found is not None:
            key = found["key"]
            value = found["value"] or ""
            detail[key] = "" if value in {"|-", "|", ">-"} else unquoted(value)
        elif key:
            detail[key] += ("\n" if detail[key] else "") + line.removeprefix(margin + "  ")
    return index + 1


def unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace("\\n", "\n").replace("\\'", "'").replace('\\"', '"')
    return value


def failing_test(point: Point, workspace: str, comments: str) -> FailingTest:
    detail = point.detail
    name = detail.get("name", "")
    message = (f"{name}: " if name else "") + detail.get("error", "").strip()
    if comments:
        message = shorten(comments.strip(), workspace)
    elif "expected" in detail and detail["expected"].strip() not in message:
        message += f"\nexpected: {detail['expected'].strip()}\nactual: {detail.get('actual', '').strip()}"
    return FailingTest(shorten(point.name, workspace), message, stack_frames(detail.get("stack", ""), workspace))


def shorten(name: str, workspace: str) -> str:
    return name.replace(workspace + "/", "")


def stack_frames(stack: str, workspace: str) -> tuple[Frame, ...]:
    """Frames in the workspace, outermost first (JavaScript prints them the other way round)."""
    found: list[Frame] = []
    for line in stack.split("\n"):
        place = STACK.match(line.strip())
        if place is None or not place["path"].startswith(workspace + "/") or "/node_modules/" in place["path"]:
            continue
        function = place["function"] or ""
        found.append(
            Frame(shorten(place["path"], workspace), int(place["line"]), "" if "<anonymous>" in function else function, "")
        )
    return tuple(reversed(found))
