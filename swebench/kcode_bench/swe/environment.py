"""The environment of one instance: a virtual environment beside the tree, and the tree as it is after the installation."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kcode.errors import InfrastructureError, SandboxUnavailable
from kcode_bench.swe.host_git import git
from kcode_bench.swe.interpreters import Interpreter, nearest
from kcode_bench.swe.rows import Row
from kcode_bench.swe.sources import Source, check_out
from kcode_bench.swe.specs import Spec
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.errors import SandboxError, SandboxUnavailableError
from kcode_sandbox.policy import Limits, Network, Policy
from kcode_sandbox.sandbox import ExecResult

Kind = Literal["bwrap", "venv"]
"""In our sandbox, or without walls: venv is for machines that are walls themselves."""

INSTALL_LIMIT_S = 1800.0
MAX_LOG_BYTES = 60 << 20
LIMITS = Limits(processes=1024, output_bytes=MAX_LOG_BYTES + (1 << 20))
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
QUIET = {"PAGER": "cat", "PIP_PROGRESS_BAR": "off", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TQDM_DISABLE": "1"}
# How packages are had: the user's index and proxies count while a tree is installed, never while it is worked in or tested.
INDEX_PREFIXES = ("PIP_", "UV_INDEX", "SSL_CERT", "REQUESTS_CA")
INDEX_NAMES = {"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}


class EnvironmentFailed(InfrastructureError):
    """The environment of an instance could not be built; the message says what failed last."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance lives. `tree` is what is worked in and graded, one after the other at the same path, since editable
    installations name it; it is made anew from `prepared` each time."""

    folder: Path

    @property
    def tree(self) -> Path:
        return self.folder / "testbed"

    @property
    def prepared(self) -> Path:
        return self.folder / "prepared"

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    @property
    def record(self) -> Path:
        return self.folder / "environment.json"

    @contextmanager
    def held(self) -> Generator[None]:
        """Nobody else uses the place meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def renew(self) -> None:
        """A fresh tree: nothing of what was done in the last one is left."""
        shutil.rmtree(self.tree, ignore_errors=True)
        shutil.copytree(self.prepared, self.tree, symlinks=True)


class Environment(BaseModel):
    """What was built, as it stands in results. `key` changes with all that it was built from."""

    model_config = ConfigDict(frozen=True)

    key: str
    kind: Kind
    python: str
    freeze_sha: str
    freeze: tuple[str, ...]
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, object]:
        return {"kind": self.kind, "python": self.python, "freeze_sha": self.freeze_sha, "warnings": list(self.warnings)}


def variables(place: Place, spec: Spec) -> dict[str, str]:
    """What commands get: the instance's own Python first, and nothing of the Python that kcode runs on."""
    given = {"PATH": f"{place.venv}/bin:{SYSTEM_PATH}", "VIRTUAL_ENV": str(place.venv), "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    return given | QUIET | dict(spec.environment)


def policy_for(place: Place, spec: Spec, kind: Kind, *, building: bool = False) -> Policy:
    """Tests run without a network and cannot write their environment; both are open while it is built."""
    given = variables(place, spec)
    network: Network = "off"
    if building:
        network = "on"
        named = {name for name in os.environ if name.startswith(INDEX_PREFIXES)} | (INDEX_NAMES & set(os.environ))
        given = {name: os.environ[name] for name in named} | given
    return Policy(
        place.tree,
        "workspace-write" if kind == "bwrap" else "danger-full-access",
        network=network,
        readable=() if building else (place.venv,),
        writable=(place.venv,) if building else (),
        environment=tuple(sorted(given.items())),
        limits=LIMITS,
    )


def build(place: Place, row: Row, spec: Spec, source: Source, kind: Kind) -> Environment:
    """The environment, built unless the same one stands there already. The place must be held.

    Raises EnvironmentFailed with install.log beside it, StartError for a repository or commit that is not there, and
    SandboxUnavailable.
    """
    interpreter, warning = nearest(spec.python)
    key = _key(row, spec, interpreter, kind, place)
    standing = read_record(place)
    if standing is not None and standing.key == key and place.prepared.is_dir():
        return standing
    place.record.unlink(missing_ok=True)
    check_out(source, row.repo, row.base_commit, place.tree)
    _make_venv(place, spec, interpreter)
    freeze = asyncio.run(_install(place, row, spec, kind))
    _keep(place)
    warnings = (*((warning,) if warning else ()), *_copies_in_sight(row, interpreter))
    sha = hashlib.sha256("\n".join(freeze).encode()).hexdigest()
    built = Environment(key=key, kind=kind, python=interpreter.version, freeze_sha=sha, freeze=freeze, warnings=warnings)
    write_whole(place.record, built.model_dump_json(indent=2))
    return built


def read_record(place: Place) -> Environment | None:
    try:
        return Environment.model_validate_json(place.record.read_bytes())
    except (OSError, ValidationError):
        return None


def write_whole(file: Path, text: str) -> None:
    """Never half a file: written beside it and renamed."""
    beside = file.with_name(f".{file.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


def _key(row: Row, spec: Spec, interpreter: Interpreter, kind: Kind, place: Place) -> str:
    made_of = [row.repo, row.base_commit, asdict(spec), str(interpreter.path), interpreter.version, kind, str(place.folder)]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _make_venv(place: Place, spec: Spec, interpreter: Interpreter) -> None:
    shutil.rmtree(place.venv, ignore_errors=True)
    flags = ["--system-site-packages"] if spec.system_site_packages else []
    environment = {"PATH": SYSTEM_PATH, "HOME": str(place.folder)}
    command = [interpreter.path, "-I", "-m", "venv", *flags, place.venv]
    try:
        done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailed(f"{interpreter.path} made no virtual environment: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise EnvironmentFailed(f"{interpreter.path} made no virtual environment: {said[-1] if said else done.returncode}")


async def _install(place: Place, row: Row, spec: Spec, kind: Kind) -> tuple[str, ...]:
    """Pins, then the lines of the spec; what pip lists afterwards."""
    pins = ["python -m pip install " + " ".join(f"'{pin}'" for pin in spec.pins)] if spec.pins else []
    version = row.version if row.version and row.version[0].isdigit() else "0"
    # A tree of one commit has no tags to take a version from.
    pretend = {"SETUPTOOLS_SCM_PRETEND_VERSION": version if version.count(".") else f"{version}.0"}
    log = place.folder / "install.log"
    log.write_bytes(b"")
    try:
        sandbox = open_sandbox(policy_for(place, spec, kind, building=True))
    except SandboxUnavailableError as error:
        raise SandboxUnavailable(str(error)) from error
    try:
        await sandbox.start()
        for line in (*pins, *spec.install):
            done = await sandbox.exec(
                ["bash", "-c", line], timeout_s=INSTALL_LIMIT_S, environment=pretend, max_output=MAX_LOG_BYTES
            )
            with log.open("ab") as file:
                file.write(f"+ {line}\n".encode() + done.output)
            if done.exit_code != 0:
                raise EnvironmentFailed(f"`{line}` {_ending(done)}; see {log}")
        frozen = await sandbox.exec(["python", "-m", "pip", "freeze", "--all"], timeout_s=120, separate_stderr=True)
    except SandboxUnavailableError as error:
        raise SandboxUnavailable(str(error)) from error
    except SandboxError as error:
        raise EnvironmentFailed(f"the sandbox ended during the installation: {error}") from error
    finally:
        await sandbox.close()
    return tuple(frozen.output.decode(errors="replace").splitlines())


def _ending(done: ExecResult) -> str:
    last = done.output.decode(errors="replace").strip().splitlines()
    how = "was ended for time" if done.timed_out else f"ended with {done.exit_code}"
    return f"{how}: {last[-1]}" if last else how


def _keep(place: Place) -> None:
    """Put the tree aside as the pattern of all later ones. What the installation left is nobody's change."""
    left = git("ls-files", "--others", "--exclude-standard", "--directory", "-z", cwd=place.tree).decode(errors="replace")
    names = [name for name in left.split("\0") if name]
    with (place.tree / ".git" / "info" / "exclude").open("a", encoding="utf-8") as file:
        file.writelines(f"/{name}\n" for name in names)
    git("checkout", "--quiet", "--force", "HEAD", "--", ".", cwd=place.tree)
    shutil.rmtree(place.prepared, ignore_errors=True)
    shutil.copytree(place.tree, place.prepared, symlinks=True)


def _copies_in_sight(row: Row, interpreter: Interpreter) -> tuple[str, ...]:
    """Other releases of the project in Pythons that the agent can see, from which a fix could be read off."""
    name = row.repo.partition("/")[2].lower()
    roots = dict.fromkeys((interpreter.path.parent.parent, Path(sys.base_prefix).resolve()))
    found = [path for root in roots for path in root.glob(f"lib/python3*/site-packages/{name}-*.dist-info")]
    return tuple(f"{path.name} lies in sight of the agent, in {path.parent}" for path in found)
