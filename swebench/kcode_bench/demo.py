"""`make run`: kcode on a real bug. A copy of an example repository is made; the TUI opens on a terminal, otherwise headless."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from kcode.errors import KcodeError, StartError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TASK = "A test fails. Find the bug and fix it."


def prepare(example: str, parent: Path) -> Path:
    """A fresh copy of the example below `parent`, as a git repository with one commit. Raises StartError."""
    source = EXAMPLES / example
    if not source.is_dir():
        known = ", ".join(sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()))
        raise StartError(f"there is no example {example!r} in {EXAMPLES}; there are: {known}")
    folder = parent / example
    shutil.copytree(source, folder)
    identity = ["-c", "user.name=kcode demo", "-c", "user.email=demo@example.com", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], [*identity, "commit", "-q", "-m", "The example as it came"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--example", default="shopping-cart", show_default=True, help="A folder of examples/.")
@click.option("-m", "--model", default="", help="Passed to kcode.")
@click.option("--headless", is_flag=True, help="No TUI, also on a terminal.")
def main(example: str, model: str, headless: bool) -> None:
    """Copy an example repository with a bug and let kcode fix it."""
    try:
        folder = prepare(example, Path(tempfile.mkdtemp(prefix="kcode-demo-")))
    except KcodeError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(error.exit_code)
    command = [sys.executable, "-m", "kcode", "--cd", str(folder)]
    command += ["-m", model] if model else []
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not headless
    command += [TASK] if on_terminal else ["-p", TASK]
    click.echo(f"A copy of examples/{example} with its bug is in {folder}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
