"""Trusted folders: where a project's own configuration counts, and how far.

A repository may come from anybody, so what it configures counts only once the user has trusted its folder, and then it may only
narrow what kcode does (kcode/project.py). The list is kept in the user's own configuration folder and is changed by the user's
command alone. Trust holds for exactly the folder that was named, not for those below it: they may be somebody else's checkouts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kcode.errors import ConfigError
from kcode.paths import Paths, make_private

FILE_NAME = "trusted.json"


class _Trusted(BaseModel):
    model_config = ConfigDict(extra="forbid")

    folders: list[str]


def is_trusted(paths: Paths, folder: Path) -> bool:
    """Whether the user has trusted `folder`; links in its path are followed first. Raises ConfigError for a broken list."""
    return folder.resolve() in trusted_folders(paths)


def trust(paths: Paths, folder: Path) -> bool:
    """Trust `folder`; False when it was trusted already."""
    known, real = trusted_folders(paths), folder.resolve()
    if real not in known:
        _write(paths, (*known, real))
    return real not in known


def trust_here(paths: Paths, folder: Path) -> str:
    """As `trust`, in words for who is in a session."""
    done = trust(paths, folder)
    return f"{folder} is trusted from the next session on (/new begins one)" if done else f"{folder} is trusted already"


def distrust(paths: Paths, folder: Path) -> bool:
    """Trust `folder` no more; False when it was not trusted. It need not exist any more."""
    known, real = trusted_folders(paths), folder.resolve()
    if real in known:
        _write(paths, [other for other in known if other != real])
    return real in known


def trusted_folders(paths: Paths) -> tuple[Path, ...]:
    """In the order in which they were trusted. Raises ConfigError naming the file when it cannot be read."""
    file = paths.config / FILE_NAME
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
        return tuple(Path(folder) for folder in _Trusted.model_validate_json(text).folders)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; fix it or remove it") from error
    except (ValidationError, ValueError) as error:
        raise ConfigError(f"{file} is no list of trusted folders; remove it and trust your folders anew") from error


def _write(paths: Paths, folders: Sequence[Path]) -> None:
    try:
        file = make_private(paths.config) / FILE_NAME
        partial = file.with_name(f".{FILE_NAME}.{os.getpid()}")
        partial.write_text(
            _Trusted(folders=[str(folder) for folder in folders]).model_dump_json(indent=1) + "\n", encoding="utf-8"
        )
        partial.replace(file)
    except OSError as error:
        raise ConfigError(f"cannot write {paths.config / FILE_NAME}: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise ConfigError(f"a folder whose name is not UTF-8 cannot be trusted: {error.object[:200]!r}") from error
