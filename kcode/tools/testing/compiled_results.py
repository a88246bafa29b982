"""Results of `go test -json` and `cargo test`."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kcode.tools.testing.report import FailingTest, Frame, Results

GO_PLACE = re.compile(r"^\s+(?P<path>[\w./-]+\.go):(?P<line>\d+): (?P<message>.*)$")
RUST_RESULT = re.compile(r"^test (?P<name>\S+)(?: - should panic)? \.\.\. (?P<result>ok|FAILED|ignored)", re.MULTILINE)
RUST_STARTED = re.compile(r"^test (?P<name>\S+) \.\.\. *$", re.MULTILINE)
RUST_BLOCK = re.compile(r"^---- (?P<name>\S+) stdout ----\n(?P<body>.*?)(?=^---- |^failures:|\Z)", re.MULTILINE | re.DOTALL)
RUST_PANIC = re.compile(
    r"panicked at (?P<path>[^\s:]+):(?P<line>\d+):\d+:\n(?P<message>.*?)(?=^stack backtrace:|^note: |\Z)",
    re.DOTALL | re.MULTILINE,
)
RUST_ERROR = re.compile(r"^error(?:\[E\d+\])?: .*?(?=^\s*$|\Z)", re.MULTILINE | re.DOTALL)
NOISE = ("=== RUN", "=== PAUSE", "=== CONT", "--- FAIL", "--- PASS", "FAIL", "ok  \t", "exit status")


class GoEvent(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    action: str = Field(alias="Action")
    package: str = Field(default="", alias="Package")
    test: str = Field(default="", alias="Test")
    output: str = Field(default="", alias="Output")


def parse_go(log: str) -> Results | None:
    """None when there is no event in the output."""
    outputs: dict[tuple[str, str], list[str]] = defaultdict(list)
    ended: dict[tuple[str, str], Literal["pass", "fail", "skip"]] = {}
    begun: list[tuple[str, str]] = []
    build_errors: list[str] = []
    for line in log.split("\n"):
        try:
            event = GoEvent.model_validate_json(line)
        except ValidationError:
            build_errors.append(line)
            continue
        key = (event.package, event.test)
        if event.action == "run":
            begun.append(key)
        elif event.action == "build-output":
            build_errors.append(event.output.rstrip())
        elif event.action == "output":
            outputs[key].append(event.output)
        elif event.action in {"pass", "fail", "skip"}:
            ended[key] = "pass" if event.action == "pass" else "fail" if event.action == "fail" else "skip"
    if not outputs and not ended:
        return None
    return go_results(outputs, ended, begun, "\n".join(build_errors).strip())


def go_results(
    outputs: dict[tuple[str, str], list[str]],
    ended: dict[tuple[str, str], Literal["pass", "fail", "skip"]],
    begun: list[tuple[str, str]],
    build_errors: str,
) -> Results:
    """A test with failing subtests is not counted beside them; a package that fails without a failing test is an error."""
    tests = {key: result for key, result in ended.items() if key[1]}
    failing: list[FailingTest] = []
    errors = 0
    for (package, test), result in ended.items():
        if result != "fail":
            continue
        if not test:
            if not any(key[0] == package and value == "fail" for key, value in tests.items()):
                errors += 1
                text = without_noise("".join(outputs[(package, "")])) or build_errors
                failing.append(FailingTest(package, text[-1500:]))
        elif not any(key[0] == package and key[1].startswith(test + "/") and value == "fail" for key, value in tests.items()):
            failing.append(go_failure(package, test, "".join(outputs[(package, test)])))
    running = next((f"{package} {test}" for package, test in reversed(begun) if (package, test) not in ended), "")
    passed = sum(result == "pass" for result in tests.values())
    skipped = sum(result == "skip" for result in tests.values())
    return Results(passed, len(failing) - errors, errors, skipped, tuple(failing), running)


def go_failure(package: str, test: str, output: str) -> FailingTest:
    frames: list[Frame] = []
    for line in output.split("\n"):
        if (place := GO_PLACE.match(line)) is not None:
            frames.append(Frame(place["path"], int(place["line"]), "", ""))
    return FailingTest(f"{package} {test}", without_noise(output), tuple(frames))


def without_noise(text: str) -> str:
    return "\n".join(line.strip() for line in text.split("\n") if line.strip() and not line.strip().startswith(NOISE))


def parse_cargo(log: str) -> Results | None:
    """None when neither a test nor a compiler error is in the output."""
    results = [(found["name"], found["result"]) for found in RUST_RESULT.finditer(log)]
    blocks = {found["name"]: found["body"] for found in RUST_BLOCK.finditer(log)}
    failing = [rust_failure(name, blocks.get(name, "")) for name, result in results if result == "FAILED"]
    started = [found["name"] for found in RUST_STARTED.finditer(log)]
    if not results and not started:
        compile_errors = [found[0].strip() for found in RUST_ERROR.finditer(log) if "could not compile" not in found[0]]
        if not compile_errors:
            return None
        return Results(errors=1, failing=(FailingTest("compilation", "\n\n".join(compile_errors[:5])),))
    counts = [result for _, result in results]
    running = started[-1] if started else ""
    return Results(counts.count("ok"), len(failing), 0, counts.count("ignored"), tuple(failing), running)


def rust_failure(name: str, body: str) -> FailingTest:
    panic = RUST_PANIC.search(body)
    if panic is None:
        return FailingTest(name, body.strip()[:1500])
    return FailingTest(name, panic["message"].strip(), (Frame(panic["path"], int(panic["line"]), "", ""),))
