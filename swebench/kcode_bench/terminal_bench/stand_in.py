"""What stands in, while a task is run in folders of this machine, for the programs that scripts load their tools with.

It is run as `stand_in.py NAME ARGUMENTS`, needs nothing but the standard library and never pretends: what is not on this machine
is refused with a line that says so. STAND_IN_PYTHON is the Python whose packages are used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

PYTHON = os.environ.get("STAND_IN_PYTHON", sys.executable)
VALUED = ("--with", "-w", "--from", "-p", "--python", "--project", "--directory", "-n", "--name")
INDEX = "--index"
"""What the options that name a package index begin with; each has a value, which says nothing here."""
ENV_FILE = 'mkdir -p "$HOME/.local/bin" && : > "$HOME/.local/bin/env"\n'
VERSION = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


def main(arguments: list[str]) -> int:
    name, rest = arguments[0], arguments[1:]
    if name in ("apt-get", "apt"):
        return _apt(rest)
    real = _real(name)
    if real is not None and os.environ.get("STAND_IN_NETWORK") == "on":
        return _become([real, *rest])
    if name == "curl":
        return _curl(rest)
    if name in ("pip", "pip3"):
        return _packages(rest[1:]) if rest[:1] == ["install"] else _refuse(f"pip {' '.join(rest)}")
    if name == "uvx":
        return _tool(rest)
    return _uv(rest)


def _real(name: str) -> str | None:
    """The program of that name after this one on PATH."""
    own = os.path.dirname(os.path.abspath(__file__))
    path = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.abspath(folder) != own]
    return shutil.which(name, path=os.pathsep.join(path))


def _refuse(what: str) -> int:
    print(f"kcode: {what}: not possible without a network", file=sys.stderr)
    return 100


def _apt(words: list[str]) -> int:
    plain = [word for word in words if not word.startswith("-")]
    for package in plain[1:] if plain[:1] == ["install"] else []:
        asked = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package.partition("=")[0]]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        # curl is asked for to load uv, which has a stand-in as well.
        if not done.stdout.startswith("installed") and package != "curl":
            return _refuse(f"apt-get install {package}")
    return 0


def _curl(words: list[str]) -> int:
    if any("astral.sh/uv" in word for word in words):
        print(ENV_FILE, end="")
        return 0
    return _refuse(f"curl {' '.join(words)}")


def _packages(words: list[str]) -> int:
    for word in words:
        if word.startswith("-"):
            continue
        name, _, wanted = word.partition("==")
        name = re.split(r"[<>=~!\[]", name)[0]
        done = subprocess.run([PYTHON, "-P", "-c", VERSION, name], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            if name == "pytest-json-ctrf":
                continue
            return _refuse(f"install {word}")
        if wanted and done.stdout.strip() != wanted:
            print(f"kcode: {word} was asked for, {done.stdout.strip()} is used", file=sys.stderr)
    return 0


def _uv(words: list[str]) -> int:
    if words[:1] in (["init"], ["venv"], ["sync"]) or words[:2] == ["python", "install"]:
        return 0
    if words[:2] == ["tool", "run"]:
        return _tool(words[2:])
    if words[:1] == ["add"]:
        return _packages(words[1:])
    if words[:2] == ["pip", "install"]:
        return _packages(words[2:])
    if words[:1] == ["run"]:
        return _tool(words[1:])
    return _refuse(f"uv {' '.join(words)}")


def _tool(words: list[str]) -> int:
    """Options are read up to the program's name; packages that --with names have to be there."""
    wanted: list[str] = []
    while words and words[0].startswith("-"):
        option, _, value = words.pop(0).partition("=")
        if (option in VALUED or option.startswith(INDEX)) and not value:
            value = words.pop(0) if words else ""
        if option in ("--with", "-w"):
            wanted.append(value)
    if failed := _packages(wanted):
        return failed
    if not words:
        return _refuse("uvx without a program")
    name, rest = words[0].partition("@")[0], words[1:]
    if re.fullmatch(r"python[\d.]*", name):
        return _become([PYTHON, *rest])
    if name == "pytest":
        return _become([PYTHON, "-P", "-m", "pytest", *_known(rest)])
    found = shutil.which(name)
    return _become([found, *rest]) if found is not None else _refuse(f"uvx {name}")


def _known(words: list[str]) -> list[str]:
    """Without the options of a reporter that is not installed."""
    if subprocess.run([PYTHON, "-P", "-c", "import pytest_json_ctrf"], capture_output=True, check=False).returncode == 0:
        return words
    kept = list(words)
    while "--ctrf" in kept:
        place = kept.index("--ctrf")
        del kept[place : place + 2]
    return [word for word in kept if not word.startswith("--ctrf=")]


def _become(argv: list[str]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
