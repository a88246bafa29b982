"""Compilers and interpreters that live outside /usr: found outside, seen read-only inside at their own path.

What this user may not look into counts as absent, which os.path says and pathlib does not.

Only the user's environment and well-known folders are asked, never the workspace: a link in a repository may point
into a toolchain, it cannot add one.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Below the home folder; each the smallest folder that holds programs and no credentials.
HOME_ROOTS = (
    *(".pyenv", ".nvm", ".volta/tools", ".volta/bin", ".fnm", ".local/share/fnm", ".local/share/uv/python"),
    *(".local/share/uv/tools", ".local/share/pipx", ".local/share/mise/installs", ".local/share/mise/shims"),
    *(".asdf", ".rbenv", ".rustup", ".cargo/bin", ".sdkman/candidates", ".deno/bin", ".bun/bin", "go/bin", ".local/bin"),
    *("miniconda3", "anaconda3", "miniforge3", "mambaforge", ".local/share/pnpm"),
)
SYSTEM_ROOTS = ("/nix/store", "/home/linuxbrew/.linuxbrew")
VARIABLES = (
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYENV_ROOT",
    "NVM_DIR",
    "RUSTUP_HOME",
    "UV_PYTHON_INSTALL_DIR",
    "GOROOT",
    "JAVA_HOME",
)
CREDENTIAL_NAMES = ("pip.conf", ".npmrc", ".condarc", "credentials", "credentials.toml", ".netrc", ".pypirc")
# What /usr already shows, and what must never be shown whole.
SYSTEM = tuple(Path(path) for path in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc"))
NEVER = frozenset(
    Path(path) for path in ("/", "/home", "/root", "/var", "/srv", "/mnt", "/media", "/opt", "/tmp", "/run", "/etc", "/proc")
)
MAX_HOPS = 16


@dataclass(frozen=True, slots=True)
class Toolchains:
    """`roots` are real folders, none inside another; `covered` are files in them that may hold credentials."""

    roots: tuple[Path, ...]
    covered: tuple[Path, ...]


def find_toolchains(environment: Mapping[str, str], home: Path, workspace: Path) -> Toolchains:
    candidates = [*_named_roots(environment, home), *_path_roots(environment, home), Path(sys.base_prefix)]
    allowed = [
        path for path in _with_links(candidates) if _may_show(path, home, workspace) and os.access(path, os.R_OK | os.X_OK)
    ]
    roots = outermost(allowed)
    covered = [root / name for root in roots for name in CREDENTIAL_NAMES if os.path.isfile(root / name)]
    return Toolchains(tuple(roots), tuple(covered))


def _named_roots(environment: Mapping[str, str], home: Path) -> Iterator[Path]:
    yield from (home / name for name in HOME_ROOTS)
    yield from map(Path, SYSTEM_ROOTS)
    for name in VARIABLES:
        if environment.get(name):
            yield Path(environment[name])


def _path_roots(environment: Mapping[str, str], home: Path) -> Iterator[Path]:
    """A PATH entry X/bin shows all of X when X is laid out like an installation; otherwise only the entry. X/shims does when X
    is a version manager, whose shims run what lies beside them."""
    for entry in environment.get("PATH", "").split(":"):
        path = Path(entry)
        if not path.is_absolute():
            continue
        prefix = path.parent
        installed = any(os.path.exists(prefix / name) for name in ("pyvenv.cfg", "lib", "lib64", "conda-meta", "include"))
        if path.name in ("bin", "sbin", "Scripts") and installed and _is_narrow(prefix, home):
            yield prefix
        if path.name == "shims" and any(os.path.isdir(prefix / name) for name in ("libexec", "versions", "installs")):
            yield prefix
        yield path


def _with_links(paths: Iterable[Path]) -> Iterator[Path]:
    """Each path's real folder and, for interpreters of virtual environments, every folder a link leads through."""
    for path in paths:
        if not os.path.isdir(path):
            continue
        yield path.resolve()
        if os.path.isfile(path / "pyvenv.cfg"):
            yield from _hops(path / "bin" / "python")


def _hops(link: Path) -> Iterator[Path]:
    for _ in range(MAX_HOPS):
        if not os.path.islink(link):
            break
        link = link.parent / os.readlink(link)
        folder = Path(os.path.normpath(link.parent))
        if folder.name == "bin":
            yield folder.parent.resolve()


def _is_narrow(path: Path, home: Path) -> bool:
    return path not in NEVER and path != home and path not in home.parents and path != home / ".local"


def _may_show(path: Path, home: Path, workspace: Path) -> bool:
    if not _is_narrow(path, home) or path in (home / ".config", home / ".cargo", home / ".ssh"):
        return False
    if path in workspace.parents or path.is_relative_to(workspace):
        return False
    return not _below(str(path), map(str, SYSTEM))


def outermost(paths: Iterable[Path]) -> list[Path]:
    """Sorted, without those that lie inside another."""
    kept: list[Path] = []
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def workspace_venvs(workspace: Path) -> list[Path]:
    """Virtual environments at the top of the workspace. What is planted in one runs outside at its next use."""
    return sorted(
        Path(entry.path)
        for entry in os.scandir(workspace)
        if entry.is_dir(follow_symlinks=False) and os.path.isfile(os.path.join(entry.path, "pyvenv.cfg"))
    )


def own_programs() -> dict[str, Path]:
    """Programs kcode brings as wheels and its tools call by name inside."""
    folders = (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent)
    found = {name: folder / name for folder in reversed(folders) for name in ("rg",) if os.path.isfile(folder / name)}
    return {name: path.resolve() for name, path in found.items()}


def visible_path(path: str, roots: Iterable[Path]) -> str:
    """PATH in the user's order, without what cannot be seen inside."""
    seen = tuple(str(root) for root in (*roots, *SYSTEM))
    kept = [entry for entry in path.split(":") if entry and (_below(entry, seen) or _below(os.path.realpath(entry), seen))]
    return ":".join(dict.fromkeys(kept))


def _below(path: str, roots: Iterable[str]) -> bool:
    normal = os.path.normpath(path)
    return any(normal == root or normal.startswith(f"{root}/") for root in roots)
