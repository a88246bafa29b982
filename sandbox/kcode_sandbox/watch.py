"""After a command: what the walls stopped of it, from counters of the kernel, the proxy's record, the mounts and the guard."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kcode_sandbox.errors import FileError
from kcode_sandbox.guard import SUFFIX
from kcode_sandbox.places import Places
from kcode_sandbox.policy import Policy
from kcode_sandbox.proxy import Denial
from kcode_sandbox.sandbox import ExecResult, ShellResult
from kcode_sandbox.violation import Violation, report

TOO_LARGE = 128 + signal.SIGXFSZ
KILLED = 128 + signal.SIGKILL
EXPLAINED_BYTES = 64 << 10
NO_SPACE = ("no space left on device", "enospc")
SPARE_BYTES = 256 << 20
USE_WHAT_IS_THERE = "ask the user to allow the host, or use what is installed"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one launch of a backend can tell. `denials` grows as the proxy refuses; `groups` are folders of control groups."""

    places: Places
    denials: Sequence[Denial] = ()
    groups: tuple[Path, ...] = ()


@dataclass(slots=True)
class Watch:
    """One sandbox. `guard` holds what a command left; `evidence` is the backend's, None where there are no walls."""

    policy: Policy
    guard: Callable[[], Sequence[str]]
    evidence: Callable[[], Evidence | None]
    _denied: int = 0
    _counts: dict[str, int] = field(default_factory=dict)

    def over_command(self, result: ExecResult, cwd: str, unrouted: int) -> ExecResult:
        """The result with what was held and stopped. Blocks; for a thread. `unrouted`: packets that found no way out."""
        held = tuple(self.guard())
        found = self._found(result, result.output + result.stderr, cwd, unrouted)
        return replace(result, held=held, violations=(*_held(held), *found))

    def over_shell(self, result: ShellResult, unrouted: int) -> ShellResult:
        """As over_command."""
        held = tuple(self.guard())
        return replace(result, held=held, violations=(*_held(held), *self._found(result, result.output, result.cwd, unrouted)))

    def over_file(self, error: FileError) -> None:
        """Report the rule behind a file tool's failure."""
        evidence = self.evidence()
        violation = evidence.places.judge(error.path, error.code) if evidence is not None and error.path else None
        report([violation] if violation is not None else [])

    def over_write(self) -> None:
        report(_held(tuple(self.guard())))

    def _found(self, result: ExecResult | ShellResult, output: bytes, cwd: str, unrouted: int) -> list[Violation]:
        evidence = self.evidence()
        if evidence is None:
            return _dropped(result)
        found = [*_dropped(result), *self._network(evidence, unrouted), *self._limits(evidence, result, output)]
        if result.exit_code not in {0, None}:
            text = output[-EXPLAINED_BYTES:].decode(errors="replace")
            found += evidence.places.explain(text, cwd)
        return found

    def _network(self, evidence: Evidence, unrouted: int) -> list[Violation]:
        policy, count = self.policy, len(evidence.denials)
        # A new launch has a new record.
        new, self._denied = evidence.denials[self._denied if self._denied <= count else 0 :], count
        found = [Violation("network", denial.asked, denial.rule, USE_WHAT_IS_THERE) for denial in new]
        if unrouted and policy.network == "off":
            rule, what = "network is off in this sandbox", "a connection or the look-up of a name went nowhere"
            found.append(Violation("network", what, rule, USE_WHAT_IS_THERE))
        elif unrouted and policy.network == "allow-list":
            rule = f"only {policy.network_text} can be reached here, through the proxy in HTTP_PROXY"
            what = "a connection past the proxy or the look-up of a name went nowhere"
            found.append(Violation("network", what, rule, "use a client that takes the proxy, or what is installed"))
        return found

    def _limits(self, evidence: Evidence, result: ExecResult | ShellResult, output: bytes) -> list[Violation]:
        limits, found = self.policy.limits, list[Violation]()
        counts = _counts(evidence.groups)
        new = {name: count - self._counts.get(name, 0) for name, count in counts.items()}
        self._counts = counts
        if new.get("max", 0) > 0:
            rule = f"at most {limits.processes} processes at once in this sandbox"
            found.append(Violation("limit", f"{new['max']} could not be started", rule, "run fewer at a time"))
        if new.get("oom_kill", 0) > 0:
            rule = f"at most {_mib(limits.memory_bytes)} of memory in this sandbox"
            found.append(Violation("limit", f"{new['oom_kill']} programs were killed", rule, "use less memory"))
        if result.exit_code == TOO_LARGE or (result.exit_code and b"File too large" in output):
            rule = f"at most {_mib(limits.file_bytes)} for one file in this sandbox"
            found.append(Violation("limit", "a file would have grown larger", rule, "write less or in pieces"))
        if result.exit_code and _ran_out(output) and _spare_bytes(self.policy.workspace) > SPARE_BYTES:
            rule = f"at most {_mib(limits.tmp_bytes)} in /tmp and /var/tmp, and a bounded home, in this sandbox"
            found.append(Violation("limit", "the space was used up", rule, "remove what is not needed or use the workspace"))
        return found


def _held(names: tuple[str, ...]) -> list[Violation]:
    rule = f"what would run or steer programs outside was renamed (its name now ends in {SUFFIX})"
    return [Violation("held", ", ".join(names), rule, "tell the user if it is wanted")] if names else []


def _dropped(result: ExecResult | ShellResult) -> list[Violation]:
    if not result.dropped_bytes:
        return []
    what = f"{result.dropped_bytes} bytes were dropped from its middle"
    return [Violation("limit", what, "output is kept up to a bound", "send long output to a file")]


def _counts(groups: Sequence[Path]) -> dict[str, int]:
    """How often a bound of a control group was hit: `max` forks refused, `oom_kill` processes killed."""
    counts: dict[str, int] = {}
    for group in groups:
        for name, wanted in (("pids.events", "max"), ("memory.events", "oom_kill"), ("memory.oom_control", "oom_kill")):
            try:
                lines = (group / name).read_text().splitlines()
            except OSError:
                continue
            entries = dict(line.split(maxsplit=1) for line in lines if " " in line)
            counts[wanted] = counts.get(wanted, 0) + int(entries.get(wanted, "0"))
    return counts


def _ran_out(output: bytes) -> bool:
    text = output[-EXPLAINED_BYTES:].decode(errors="replace").lower()
    return any(words in text for words in NO_SPACE)


def _spare_bytes(folder: Path) -> int:
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _mib(count: int | None) -> str:
    return "as much as the host gives" if count is None else f"{count / (1 << 20):.0f} MiB"
