"""The private home folder: empty at first, gone with the session."""

from __future__ import annotations

import os

FOLDERS = (".cache", ".config", ".local/bin", ".local/share")


def furnish(home: str, git_configuration: bytes) -> None:
    for folder in FOLDERS:
        os.makedirs(os.path.join(home, folder), exist_ok=True)
    with open(os.path.join(home, ".gitconfig"), "wb") as file:
        file.write(git_configuration)
