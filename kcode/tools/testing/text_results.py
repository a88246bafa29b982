"""Results from what test programs print for people: pytest, unittest, jest, vitest, mocha. For commands kcode cannot steer."""

from __future__ import annotations

import re
from collections.abc import Callable

from kcode.tools.testing.compiled_results import parse_cargo
from kcode.tools.testing.report import FailingTest, Frame, Results
from kcode.tools.testing.tap_results import parse as parse_tap
from kcode.tools.truncate import plain

COUNT = re.compile(r"(\d+) (failed|passed|skipped|xfailed|xpassed|errors?|todo|pending)\b")
PYTEST_END = re.compile(
    r"^=* ?((?:\d+ (?:failed|passed|skipped|xfailed|xpassed|errors?|deselected|warnings?)(?:, )?)+) in [\d.]+s", re.MULTILINE
)
PYTEST_FAILED = re.compile(r"^(?:FAILED|ERROR) (?P<id>[^\s\[]+(?:\[.*?\])?)(?: - (?P<message>.*))?$", re.MULTILINE)
UNITTEST_RAN = re.compile(r"^Ran (\d+) tests? in", re.MULTILINE)
UNITTEST_END = re.compile(r"^(?:OK|FAILED)(?: \((?P<counts>[^)]*)\))?$", re.MULTILINE)
UNITTEST_BLOCK = re.compile(
    r"^={70}\n(?P<kind>FAIL|ERROR): (?P<id>[^\n]*)\n.*?^-{70}\n(?P<body>.*?)(?=^={70}|^-{70})", re.MULTILINE | re.DOTALL
)
PYTHON_PLACE = re.compile(
    r'^ +File "(?P<path>[^"]+)", line (?P<line>\d+)(?:, in (?P<function>.+))?\n(?: {4}(?P<source>.+)\n)?', re.MULTILINE
)
JEST_END = re.compile(r"^Tests:\s+(?P<counts>.*\d+ total)$", re.MULTILINE)
JEST_BLOCK = re.compile(r"^  ● (?P<id>[^\n]+)\n(?P<body>.*?)(?=^  ● |^Test Suites:|^(?:FAIL|PASS) |\Z)", re.MULTILINE | re.DOTALL)
JEST_FILE = re.compile(r"^FAIL (?:\S+ )?(\S+\.[cm]?[jt]sx?)", re.MULTILINE)
JEST_PLACE = re.compile(r"^ +at (?:(?P<function>[^(\n]+) )?\(?(?P<path>[^\s():]+):(?P<line>\d+):\d+\)?$", re.MULTILINE)
VITEST_END = re.compile(r"^ +Tests  (?P<counts>.*)\(\d+\)$", re.MULTILINE)
VITEST_BLOCK = re.compile(r"^ FAIL  (?P<id>[^\n]+)\n(?P<body>.*?)(?=^ FAIL  |^⎯)", re.MULTILINE | re.DOTALL)
VITEST_PLACE = re.compile(r"^ ❯ (?:(?P<function>\S+) )?(?P<path>[^\s:]+):(?P<line>\d+):\d+$", re.MULTILINE)
MOCHA_COUNT = re.compile(r"^ +(\d+) (passing|failing|pending)", re.MULTILINE)
MOCHA_BLOCK = re.compile(r"^  \d+\) (?P<id>.+?):\n(?P<body>.*?)(?=^  \d+\) |\Z)", re.MULTILINE | re.DOTALL)
CODE_LINE = re.compile(r"^ *>? *\d* ?\|")


def parse(log: str, workspace: str) -> Results | None:
    """The first format that is recognised; None when none is."""
    text = plain(log)
    for reader in READERS:
        found = reader(text, workspace)
        if found is not None:
            return found
    return None


def counts_of(text: str) -> dict[str, int]:
    return {name.rstrip("s") if name.startswith("error") else name: int(number) for number, name in COUNT.findall(text)}


def results(counts: dict[str, int], failing: list[FailingTest]) -> Results:
    skipped = sum(counts.get(name, 0) for name in ("skipped", "xfailed", "todo", "pending"))
    passed = counts.get("passed", 0) + counts.get("xpassed", 0)
    return Results(passed, counts.get("failed", 0), counts.get("error", 0), skipped, tuple(failing))


def read_pytest(text: str, workspace: str) -> Results | None:
    end = PYTEST_END.search(text)
    if end is None:
        return None
    failing = [FailingTest(found["id"], found["message"] or "") for found in PYTEST_FAILED.finditer(text)]
    return results(counts_of(end[1]), failing)


def read_unittest(text: str, workspace: str) -> Results | None:
    ran = UNITTEST_RAN.search(text)
    end = UNITTEST_END.search(text, ran.end()) if ran else None
    if ran is None or end is None:
        return None
    named = dict(part.split("=") for part in (end["counts"] or "").split(", ") if "=" in part)
    failed = int(named.get("failures", 0)) + int(named.get("unexpected successes", 0))
    errors = int(named.get("errors", 0))
    skipped = int(named.get("skipped", 0)) + int(named.get("expected failures", 0))
    failing: list[FailingTest] = []
    for block in UNITTEST_BLOCK.finditer(text):
        places = list(PYTHON_PLACE.finditer(block["body"]))
        message = block["body"][places[-1].end() :].strip() if places else block["body"].strip()
        failing.append(FailingTest(block["id"], without_carets(message), python_frames(places, workspace)))
    return Results(max(int(ran[1]) - failed - errors - skipped, 0), failed, errors, skipped, tuple(failing))


def without_carets(message: str) -> str:
    return "\n".join(line for line in message.split("\n") if line.strip(" ^~"))


def python_frames(places: list[re.Match[str]], workspace: str) -> tuple[Frame, ...]:
    return tuple(
        Frame(
            place["path"].removeprefix(workspace + "/"),
            int(place["line"]),
            place["function"] or "",
            (place["source"] or "").strip(),
        )
        for place in places
        if not place["path"].removeprefix(workspace + "/").startswith(("/", "<"))
    )


def read_jest(text: str, workspace: str) -> Results | None:
    end = JEST_END.search(text)
    if end is None:
        return None
    # The summary at the end repeats the blocks of a long run.
    blocks: dict[str, str] = {}
    for found in JEST_BLOCK.finditer(text):
        files = JEST_FILE.findall(text, 0, found.start())
        blocks[f"{files[-1]} › {found['id']}" if files else found["id"]] = found["body"]
    failing = [javascript_failure(name, body, JEST_PLACE, workspace) for name, body in blocks.items()]
    counts = counts_of(end["counts"])
    broken = sum(name.endswith("Test suite failed to run") for name in blocks)
    return results(counts | {"error": broken}, failing)


def read_vitest(text: str, workspace: str) -> Results | None:
    end = VITEST_END.search(text)
    if end is None:
        return None
    failing = [
        javascript_failure(found["id"].strip(), found["body"], VITEST_PLACE, workspace) for found in VITEST_BLOCK.finditer(text)
    ]
    return results(counts_of(end["counts"]), failing)


def read_mocha(text: str, workspace: str) -> Results | None:
    counts = {name: int(number) for number, name in MOCHA_COUNT.findall(text)}
    if "passing" not in counts:
        return None
    last = list(MOCHA_COUNT.finditer(text))[-1]
    failing: list[FailingTest] = []
    # The title stands on two lines or more, the deepest one ending with a colon.
    for found in re.finditer(MOCHA_BLOCK.pattern, text[last.end() :], re.MULTILINE | re.DOTALL):
        title = " > ".join(line.strip() for line in found["id"].split("\n"))
        failing.append(javascript_failure(title, found["body"], JEST_PLACE, workspace))
    return Results(counts["passing"], counts.get("failing", 0), 0, counts.get("pending", 0), tuple(failing))


def javascript_failure(name: str, body: str, place: re.Pattern[str], workspace: str) -> FailingTest:
    """The message without the excerpt of the source that these programs print, and the frames in the workspace."""
    frames: list[Frame] = []
    for found in place.finditer(body):
        path = found["path"].removeprefix("file://").removeprefix(workspace + "/")
        if not path.startswith(("/", "node:")) and "node_modules/" not in path:
            function = (found["function"] or "").strip()
            known = "" if "<anonymous>" in function or function.startswith("Object.") else function
            frames.append(Frame(path, int(found["line"]), known, ""))
    lines = [line.strip() for line in place.sub("", body).split("\n")]
    kept = [
        line for line in lines if line and not CODE_LINE.match(line) and not re.match(r"^(?:> )?\d+\| |^\| +\^|^at |^\^", line)
    ]
    return FailingTest(name, "\n".join(kept), tuple(reversed(frames)))


def read_cargo(text: str, workspace: str) -> Results | None:
    return parse_cargo(text) if "test result: " in text else None


READERS: tuple[Callable[[str, str], Results | None], ...] = (
    read_pytest,
    read_unittest,
    read_jest,
    read_vitest,
    read_mocha,
    parse_tap,
    read_cargo,
)
