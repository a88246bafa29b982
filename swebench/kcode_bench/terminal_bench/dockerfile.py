"""What of a Dockerfile can be done in folders of our own, and what, line by line, takes a container."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# Images that hold a plain system, for which the machine's own stands in.
PLAIN = re.compile(
    r"(docker\.io/)?(library/)?(debian|ubuntu|python|buildpack-deps|bash)(:[\w.-]+)?(@sha256:\w+)?"
    r"|ghcr\.io/laude-institute/t-bench/(ubuntu|python)[\w.-]*(:[\w.-]+)?"
)
SYSTEM = frozenset(
    (
        *("bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "opt", "proc", "root", "run"),
        *("sbin", "srv", "sys", "tmp", "usr", "var", "tests", "logs", "solution", "oracle", "installed-agent"),
    )
)
"""Top folders that are the system's or the harness's own: nothing of a task can be put there."""
# Programs of a RUN line that change the system or load something, with the reason.
OUT_OF_REACH = {
    **dict.fromkeys(("pip", "pip3", "uv", "npm", "yarn", "cargo", "go", "gem"), "it installs packages"),
    **dict.fromkeys(("apk", "yum", "dnf", "conda", "snap", "dpkg"), "it installs packages"),
    **dict.fromkeys(("curl", "wget"), "it loads something from the network"),
    **dict.fromkeys(("useradd", "adduser", "groupadd", "chown", "su", "sudo", "usermod"), "it takes other users"),
    **dict.fromkeys(("systemctl", "service", "update-alternatives", "ldconfig", "locale-gen"), "it changes the system"),
}
HARMLESS = ("CMD", "ENTRYPOINT", "LABEL", "EXPOSE", "MAINTAINER", "STOPSIGNAL")


@dataclass(frozen=True, slots=True)
class Copy:
    """`sources` in the build context; `target` as in the file, absolute; a trailing slash means a folder."""

    line: int
    sources: tuple[Path, ...]
    target: str


@dataclass(frozen=True, slots=True)
class Run:
    line: int
    command: str
    workdir: str
    environment: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order. `tops` are the names of the top folders that the task has of its own; `notes` say what is only nearly
    the same as in the image."""

    steps: tuple[Copy | Run, ...]
    folders: tuple[str, ...]
    workdir: str
    environment: tuple[tuple[str, str], ...]
    tops: tuple[str, ...]
    notes: tuple[str, ...]
    obstacles: tuple[str, ...]


def read_dockerfile(file: Path, context: Path, workdir: str = "", environment: tuple[tuple[str, str], ...] = ()) -> Plan:
    """A missing file is an obstacle like any other. `workdir` and `environment` are the task's own and win."""
    if not file.is_file():
        return Plan((), (), "/", environment, (), (), (f"{file.name}: it is missing",))
    reading = _Reading(context)
    for line, word, rest in instructions(file.read_text(encoding="utf-8", errors="replace")):
        reading.take(line, word, rest)
    return reading.plan(workdir, environment)


def instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, word in capitals and the rest, with continued lines joined."""
    number, start, pending = 0, 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not pending):
            continue
        start = start if pending else number
        pending += line.rstrip()
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        word, _, rest = pending.strip().partition(" ")
        yield start, word.upper(), rest.strip()
        pending = ""
    if pending.strip():
        word, _, rest = pending.strip().partition(" ")
        yield start, word.upper(), rest.strip()


class _Reading:
    """The state while a Dockerfile is read."""

    def __init__(self, context: Path) -> None:
        self._context = context.resolve()
        self._workdir = "/"
        # An image's ENV PATH=...:$PATH puts something before what there is, and that is this machine's.
        self._values: dict[str, str] = {"PATH": os.environ.get("PATH", os.defpath)}
        self._environment: dict[str, str] = {}
        self._steps: list[Copy | Run] = []
        self._folders: list[str] = []
        self._notes: list[str] = []
        self._obstacles: list[str] = []
        self._images = 0

    def plan(self, workdir: str, environment: tuple[tuple[str, str], ...]) -> Plan:
        if workdir:
            self._enter(0, workdir)
        if self._workdir == "/":
            self._obstacles.append("Dockerfile: no WORKDIR: the task works in /, which is the machine's own")
        targets = (step.target for step in self._steps if isinstance(step, Copy))
        tops = tuple(sorted({_top(path) for path in (*self._folders, *targets)} - SYSTEM - {""}))
        values = tuple((self._environment | dict(environment)).items())
        notes, obstacles = tuple(self._notes), tuple(self._obstacles)
        return Plan(tuple(self._steps), tuple(self._folders), self._workdir, values, tops, notes, obstacles)

    def take(self, line: int, word: str, rest: str) -> None:
        if "<<" in rest and word in ("RUN", "COPY"):
            self._refuse(line, word, rest, "a here-document")
        elif word == "FROM":
            self._from(line, rest)
        elif word == "WORKDIR":
            self._enter(line, self._filled(rest))
        elif word in ("ENV", "ARG"):
            self._set(word, rest)
        elif word in ("COPY", "ADD"):
            self._copy(line, word, rest)
        elif word == "RUN":
            self._run(line, rest)
        elif word == "USER" and rest.strip() in ("root", "0"):
            return
        elif word in HARMLESS:
            self._notes.append(f"Dockerfile:{line}: {word} {rest[:80]}: not done; commands are run one by one")
        else:
            self._refuse(line, word, rest, "not known here")

    def _refuse(self, line: int, word: str, rest: str, reason: str) -> None:
        self._obstacles.append(f"Dockerfile:{line}: {word} {' '.join(rest.split())[:120]}: {reason}")

    def _from(self, line: int, rest: str) -> None:
        self._images += 1
        image = next((part for part in self._filled(rest).split() if not part.startswith("--")), "")
        if self._images > 1:
            self._refuse(line, "FROM", rest, "a second stage")
        elif PLAIN.fullmatch(image):
            self._notes.append(f"Dockerfile:{line}: FROM {image}: this machine's system stands in for it")
        else:
            self._refuse(line, "FROM", rest, "what this image holds is not known without it")

    def _enter(self, line: int, path: str) -> None:
        self._workdir = _joined(self._workdir, path)
        self._needs(line, "WORKDIR", self._workdir)
        self._folders.append(self._workdir)

    def _needs(self, line: int, word: str, path: str) -> None:
        if _top(path) in SYSTEM and path != "/":
            self._refuse(line, word, path, f"/{_top(path)} is the machine's own")

    def _set(self, word: str, rest: str) -> None:
        try:
            parts = shlex.split(self._filled(rest))
        except ValueError:
            parts = [rest]
        if word == "ENV" and parts and "=" not in parts[0]:
            parts = [f"{parts[0]}={' '.join(parts[1:])}"]
        for part in parts:
            name, _, value = part.partition("=")
            self._values[name] = value
            if word == "ENV":
                self._environment[name] = value

    def _copy(self, line: int, word: str, rest: str) -> None:
        try:
            parts = [self._filled(part) for part in shlex.split(rest.strip("[]").replace('",', '"'))]
        except ValueError:
            self._refuse(line, word, rest, "it cannot be read")
            return
        flags = [part for part in parts if part.startswith("--")]
        names = [part for part in parts if not part.startswith("--")]
        if any(flag.startswith("--from") for flag in flags):
            self._refuse(line, word, rest, "it takes files of another image")
            return
        if len(names) < 2 or any("://" in name for name in names):
            self._refuse(line, word, rest, "its source is no file of the task")
            return
        target = _joined(self._workdir, names[-1]) + ("/" if names[-1].endswith(("/", ".")) or len(names) > 2 else "")
        sources: list[Path] = []
        for name in names[:-1]:
            found = (
                sorted(self._context.glob(name.lstrip("/")))
                if any(c in name for c in "*?[")
                else [self._context / name.lstrip("/")]
            )
            sources += found
            if not found or any(not path.exists() or not path.resolve().is_relative_to(self._context) for path in found):
                self._refuse(line, word, rest, f"{name} is not in the task's folder")
                return
        self._needs(line, word, target)
        self._steps.append(Copy(line, tuple(sources), target))

    def _run(self, line: int, rest: str) -> None:
        kept: list[str] = []
        for part in (piece.strip() for piece in re.split(r"&&|;", self._without_flags(rest))):
            reason = self._system_part(line, part)
            if reason is None:
                kept.append(part)
            elif reason:
                self._refuse(line, "RUN", part, reason)
        if kept:
            self._steps.append(Run(line, " && ".join(kept), self._workdir, tuple(self._environment.items())))
            self._folders += [path for path in re.findall(r"mkdir (?:-p )?(/[\w./-]+)", rest) if _top(path) not in SYSTEM]

    def _without_flags(self, rest: str) -> str:
        while rest.startswith("--"):
            rest = rest.partition(" ")[2].lstrip()
        return rest

    def _system_part(self, line: int, part: str) -> str | None:
        """None when it can be run in our folders, "" when there is nothing to do, else why it cannot."""
        try:
            words = shlex.split(part)
        except ValueError:
            words = part.split()
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if not words or re.match(r"rm -r?f?r? ?/var/lib/apt", part):
            return ""
        if words[0] in ("apt-get", "apt"):
            return self._apt(line, words[1:])
        if words[0] == "git" and "clone" in words:
            return "it loads something from the network"
        if re.fullmatch(r"python[\d.]*", words[0]) and words[1:3] == ["-m", "pip"]:
            return OUT_OF_REACH["pip"]
        return OUT_OF_REACH.get(words[0])

    def _apt(self, line: int, words: list[str]) -> str:
        plain = [word for word in words if not word.startswith("-")]
        if not plain or plain[0] != "install":
            return ""
        lacking = [name for name in plain[1:] if not is_installed(name.partition("=")[0])]
        if lacking:
            return f"not on this machine: {', '.join(lacking)}"
        self._notes.append(f"Dockerfile:{line}: apt-get install: this machine's own {', '.join(plain[1:])}")
        return ""

    def _filled(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            return self._values.get(match[1] or match[3], match[2] or "")

        return re.sub(r"\$(?:\{(\w+)(?::-([^}]*))?\}|(\w+))", value, text)


def is_installed(package: str) -> bool:
    """Whether this machine has the Debian package, or a program of that name."""
    try:
        asked = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.startswith("installed")


def _joined(folder: str, path: str) -> str:
    parts: list[str] = []
    for part in PurePosixPath(folder, path).parts[1:]:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/" + "/".join(parts)


def _top(path: str) -> str:
    return path.strip("/").partition("/")[0]
