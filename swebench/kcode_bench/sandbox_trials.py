"""All attacks and all jobs on one backend, as this user or as an ordinary one. The last line is one JSON object."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from kcode_bench.attacks.attack import read_attacks
from kcode_bench.attacks.jobs import read_jobs, work
from kcode_bench.attacks.run import walled
from kcode_sandbox.policy import Choice
from kcode_sandbox.toolchains import own_programs

ORDINARY = "nobody"
INTERPRETERS = (sys.executable, os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class Trials:
    """`succeeded` and `failed` name what the backend is not known to leave open; `residue` what it is and did."""

    backend: str
    user: str
    attacks: int
    succeeded: tuple[str, ...]
    must_work: int
    failed: tuple[str, ...]
    residue: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when nothing succeeded or failed that the tables do not name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=get_args(Choice), default="auto")
    parser.add_argument("--image", default="", help="of docker or podman; with the programs that the jobs need")
    parser.add_argument("--folder", help="an existing one for the scenes, instead of a temporary one")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="kcode-trials-", dir=chosen.folder) as folder:
        trials = asyncio.run(try_all(Path(folder), chosen.backend, chosen.image))
    print(json.dumps(asdict(trials)))
    return 1 if trials.succeeded or trials.failed else 0


async def try_all(folder: Path, backend: Choice, image: str = "") -> Trials:
    attacks, jobs = read_attacks(), [job for job in read_jobs() if job.possible]
    succeeded: list[str] = []
    failed: list[str] = []
    residue: list[str] = []
    for number, attack in enumerate(attacks):
        trial = await walled(attack, folder / f"attack-{number}", backend, image)
        if trial.succeeded:
            (residue if backend in attack.residue else succeeded).append(attack.id)
            print(f"succeeded: {attack.id}: {trial.output.strip()[-200:]}", file=sys.stderr)
    for number, job in enumerate(jobs):
        trial = await work(job, folder / f"job-{number}", backend, image)
        if not trial.succeeded:
            (residue if backend in job.residue else failed).append(job.name)
            print(f"failed: {job.name}: {trial.output.strip()[-200:]}", file=sys.stderr)
    user = pwd.getpwuid(os.getuid()).pw_name
    return Trials(backend, user, len(attacks), tuple(succeeded), len(jobs), tuple(failed), tuple(residue))


def command(backend: Choice) -> list[str]:
    return [sys.executable, "-m", "kcode_bench.sandbox_trials", "--backend", backend]


def run_as_ordinary(backend: Choice, folder: Path) -> subprocess.CompletedProcess[str]:
    """The same by an ordinary user in the new folder `folder`, when this is root. Raises LookupError saying why it cannot be."""
    user = pwd.getpwnam(ORDINARY)
    interpreter, paths = ordinary_interpreter(user.pw_uid, user.pw_gid)
    # What comes as a wheel lies where the other interpreter does not look.
    folders = [str(path.parent) for path in own_programs().values()]
    environment = {"PATH": ":".join(("/usr/local/bin:/usr/bin:/bin", *folders))}
    folder.mkdir()
    os.chown(folder, user.pw_uid, user.pw_gid)
    return subprocess.run(
        [interpreter, *command(backend)[1:], "--folder", str(folder)],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd=folder,
        env={**environment, "HOME": str(folder), "TMPDIR": str(folder), "SHELL": "/bin/bash", "PYTHONPATH": ":".join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


def ordinary_interpreter(uid: int, gid: int) -> tuple[str, list[str]]:
    """One of this version that the user may run, and the folders it finds this package and what it needs in."""
    paths = [os.path.abspath(path) for path in sys.path if path and "python" not in Path(path).name and "lib-dynload" not in path]
    for interpreter in dict.fromkeys(INTERPRETERS):
        try:
            done = subprocess.run(
                [interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2]); import kcode_bench.attacks.run"],
                user=uid,
                group=gid,
                extra_groups=[],
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.strip() == VERSION:
            return interpreter, paths
    raise LookupError(f"no interpreter of version {VERSION} with kcode's packages that the user {ORDINARY} may run")


if __name__ == "__main__":
    sys.exit(main())
