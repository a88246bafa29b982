"""Which rule of the walls a path falls under, from the policy and the mounts alone: nothing outside is looked at."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kcode_sandbox.policy import Policy
from kcode_sandbox.violation import Violation

PROTECTED = "read-only in this sandbox, since it runs or steers programs outside"
LINKED = "read-only in this sandbox, since a hard link makes it, or files in it, one with files outside or protected ones"
UNLINK = "leave it; ask the user to put a copy in its place (cp -r) and to start anew"
OUTSIDE = "outside of the workspace nothing may be written in this sandbox"
READ_ONLY = "this sandbox is read-only"
HIDDEN = "this sandbox does not show it"
PRIVATE = ("/tmp", "/var/tmp", "/dev", "/home/kcode", "/proc")
SYSTEM = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/run/kcode", "/var")
# How programs say an error: as the C library words it, or by the error's name as node does.
PHRASES = {
    "EROFS": r"read-only file ?system|EROFS",
    "EBUSY": r"device or resource busy|EBUSY",
    "EACCES": r"permission denied|EACCES",
    "EPERM": r"operation not permitted|EPERM",
    "ENOENT": r"no such file or directory|ENOENT",
}
_PHRASE = re.compile("|".join(f"(?P<{code}>{words})" for code, words in PHRASES.items()), re.IGNORECASE)
_QUOTED = re.compile(r"['\"‘`]([^'\"‘’`]{1,4096})['\"’`]")
_ABSOLUTE = re.compile(r"(?<![\w.~:/-])(/[^\s'\"‘’`:;,()\[\]]+)")
_BEFORE = re.compile(r"(\S+?):? *$")
MAX_LINES = 400
MAX_FOUND = 5


@dataclass(frozen=True, slots=True)
class Places:
    """`protected` is read-only in what may otherwise be written, `covered` is there but empty, `visible` may be read.

    `linked` are those of `protected` that hold a hard link to a file outside or to a protected one.
    """

    policy: Policy
    protected: tuple[Path, ...] = ()
    covered: tuple[Path, ...] = ()
    visible: tuple[Path, ...] = ()
    linked: tuple[Path, ...] = ()

    def judge(self, path: str, code: str, cwd: str = "") -> Violation | None:
        """The rule that explains the error `code` (an errno name) on `path`; None when no rule of the walls does."""
        policy = self.policy
        place = Path(os.path.normpath(os.path.join(policy.workspace, cwd, path)))
        inside = place.is_relative_to(policy.workspace) or _below(place, policy.writable)
        writes = code in {"EROFS", "EBUSY", "EACCES", "EPERM"}
        if writes and (_below(place, self.protected) or (code == "EBUSY" and _holds(place, self.protected))):
            if _below(place, self.linked) or (code == "EBUSY" and _holds(place, self.linked)):
                return Violation("write", str(place), LINKED, UNLINK)
            return Violation("write", str(place), PROTECTED, "leave it; what has to change there the user changes")
        if code == "EROFS" and policy.profile == "read-only" and inside:
            return Violation("write", str(place), READ_ONLY, "say what should be changed instead")
        if code in {"EACCES", "ENOENT", "ENXIO"} and _below(place, self.covered):
            return Violation("read", str(place), HIDDEN, "do without it, or ask the user")
        if inside or _below(place, map(Path, PRIVATE)):
            return None
        if code == "EROFS":
            return Violation(
                "write", str(place), OUTSIDE, f"write below {policy.workspace} or /tmp, or ask the user for the folder"
            )
        if code == "ENOENT" and not _below(place, (*map(Path, SYSTEM), *self.visible, *policy.readable)):
            return Violation("read", str(place), HIDDEN, "do without it, or ask the user to let the folder be read")
        return None

    def explain(self, output: str, cwd: str) -> list[Violation]:
        """The rules behind the failures that a command's output names. Only what names both an error and a path under a rule."""
        found: dict[Violation, None] = {}
        for line in output.splitlines()[-MAX_LINES:]:
            phrase = _PHRASE.search(line)
            if phrase is None or len(line) > 8192:
                continue
            code = str(phrase.lastgroup)
            judged = (self.judge(path, code, cwd) for path in _paths(line, phrase))
            found.update(dict.fromkeys(filter(None, judged)))
            if len(found) >= MAX_FOUND:
                break
        return list(found)


def _paths(line: str, phrase: re.Match[str]) -> Iterator[str]:
    """What the line may name as the path of its error: absolute paths, what is quoted, and the word before the phrase."""
    before = _BEFORE.search(line[: phrase.start()].removesuffix(" "))
    quoted = [match[1] for match in _QUOTED.finditer(line)]
    words = [*quoted, *(match[1] for match in _ABSOLUTE.finditer(line))]
    if before is not None and not quoted:
        words.append(before[1].strip("'\"`:"))
    yield from dict.fromkeys(word for word in words if word and "\0" not in word)


def _below(path: Path, places: Iterable[Path]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def _holds(path: Path, places: Iterable[Path]) -> bool:
    return any(place.is_relative_to(path) for place in places)
