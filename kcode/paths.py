"""Where kcode keeps its files. KCODE_HOME puts everything below one folder; else the platform's own places are used."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from kcode.errors import StartError

# sun_path holds 108 bytes on Linux and 104 elsewhere; the name of the socket file needs room too.
MAX_SOCKET_PATH_BYTES = 100
_SOCKET_NAME_BYTES = 32


@dataclass(frozen=True, slots=True)
class Paths:
    """Folders; none is created here. `runtime` is short enough for Unix sockets and is the user's own (mode 0700)."""

    config: Path
    data: Path
    state: Path
    cache: Path
    runtime: Path

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"

    @property
    def skills(self) -> Path:
        """The user's own; readable inside the sandbox."""
        return self.config / "skills"

    @property
    def models(self) -> Path:
        return self.data / "models"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def contexts(self) -> Path:
        """What the engine has computed, kept for its next start."""
        return self.cache / "contexts"

    @property
    def expert_counts(self) -> Path:
        """Which experts of each model are chosen often."""
        return self.cache / "experts"

    @property
    def own(self) -> tuple[Path, ...]:
        """What no command may ever write: kcode's code, the environment it runs in, and its folders."""
        specs = map(find_spec, ("kcode", "kcode_sandbox", "kcode_prompts", "kcode_backend"))
        code = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin is not None]
        places = (*code, Path(sys.prefix), self.config, self.data, self.state, self.cache, self.runtime)
        return tuple(dict.fromkeys(place.resolve() for place in places))

    def sessions(self, project: Path) -> Path:
        """The folder of a project's transcripts."""
        return self.state / "sessions" / project_key(project)

    def checkpoints(self, project: Path) -> Path:
        """The private git directory of a project's snapshots."""
        return self.state / "checkpoints" / project_key(project)

    def clones(self, project: Path) -> Path:
        """Where copies of a project keep what is written in them, as long as they last."""
        return self.state / "clones" / project_key(project)


def project_key(project: Path) -> str:
    """A folder name for a project path: readable, and different for different paths."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", project.name)[:40] or "root"
    return f"{name}-{hashlib.sha256(os.fsencode(project)).hexdigest()[:12]}"


def _short(folder: Path) -> Path:
    """`folder`, or a folder of the same meaning in the temporary directory when its path is too long for a socket."""
    if len(os.fsencode(folder)) + 1 + _SOCKET_NAME_BYTES <= MAX_SOCKET_PATH_BYTES:
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:10]
    temporary = Path(tempfile.gettempdir())
    if len(os.fsencode(temporary)) > MAX_SOCKET_PATH_BYTES - _SOCKET_NAME_BYTES - 30:
        temporary = Path("/tmp")
    return temporary / f"kcode-{os.getuid()}-{digest}"


def find_paths(environment: dict[str, str] | None = None) -> Paths:
    """The folders for this user; `environment` defaults to the process's own."""
    env = os.environ if environment is None else environment
    home = env.get("KCODE_HOME")
    if home:
        base = Path(home).expanduser().absolute()
        return Paths(base / "config", base / "data", base / "state", base / "cache", _short(base / "run"))
    dirs = platformdirs.PlatformDirs("kcode", appauthor=False)
    # Many containers and ssh sessions have no runtime folder, or name one that does not exist.
    runtime = env.get("XDG_RUNTIME_DIR", "")
    run = Path(runtime, "kcode") if runtime and os.access(runtime, os.W_OK) else Path(dirs.user_state_dir, "run")
    return Paths(
        Path(dirs.user_config_dir),
        Path(dirs.user_data_dir),
        Path(dirs.user_state_dir),
        Path(dirs.user_cache_dir),
        _short(run),
    )


def make_private(folder: Path) -> Path:
    """Create `folder` for this user alone; an existing one of another user is refused with PermissionError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.stat(follow_symlinks=False).st_uid
    if owner != os.getuid():
        raise PermissionError(f"{folder} belongs to user {owner}, not to you; remove it or set KCODE_HOME")
    return folder


def folders_of(option: str, text: str) -> tuple[Path, ...]:
    """Folders with ":" between them, links resolved. Raises StartError naming one that is none."""
    found: list[Path] = []
    for name in filter(None, text.split(":")):
        path = Path(name).expanduser().resolve()
        if not path.is_dir():
            raise StartError(f"{option} {name}: there is no such folder")
        found.append(path)
    return tuple(found)


def check_workspace(folder: Path) -> Path:
    """`folder` as a workspace: absolute, links resolved. Raises StartError when it is no folder."""
    try:
        real = folder.expanduser().resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise StartError(f"--cd {folder}: there is no such folder") from error
    if not real.is_dir():
        raise StartError(f"--cd {folder}: it is not a folder")
    return real
