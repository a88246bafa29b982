"""The program's entry. It answers `--version` before anything is imported, since scripts and editors ask for it often."""

from __future__ import annotations

import sys

from kcode import __version__


def main() -> None:
    """Run the command line of this process and end with its exit code."""
    if sys.argv[1:] in (["--version"], ["-V"], ["-v"]):
        print(f"kcode {__version__}")
        return
    from kcode.command_line import run_command_line

    sys.exit(run_command_line(sys.argv[1:]))
