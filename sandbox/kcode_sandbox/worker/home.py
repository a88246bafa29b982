"""The private home folder: empty at first, gone with the session."""

from __future__ import annotations

from pathlib import Path

FOLDERS = (".cache", ".config", ".local/bin", ".local/share")


def furnish(home: str, git_configuration: bytes) -> None:
    for folder in FOLDERS:
        (Path(home) / folder).mkdir(parents=True, exist_ok=True)
    (Path(home) / ".gitconfig").write_bytes(git_configuration)
