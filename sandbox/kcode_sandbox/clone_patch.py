"""A git patch between two sets of files, made by git on the host from contents alone.

The contents go through a pipe into a private repository without configuration, attributes or work tree: git opens no path that a
sandbox has written.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kcode_sandbox.errors import SandboxError

GIT_TIMEOUT_S = 120
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_CEILING_DIRECTORIES": "/",
}
OPTIONS = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "core.attributesFile=/dev/null", "core.quotePath=true")
WHO = b"kcode <kcode@localhost> 0 +0000"


@dataclass(frozen=True, slots=True)
class Version:
    """One file as git keeps it: a link's `data` is its target."""

    data: bytes
    is_link: bool
    executable: bool

    @property
    def mode(self) -> bytes:
        return b"120000" if self.is_link else b"100755" if self.executable else b"100644"


def make_patch(base: Mapping[bytes, Version], present: Mapping[bytes, Version]) -> bytes:
    """A binary-safe patch that `git apply` takes, from `base` to `present`; b"" when they are equal. Blocks."""
    with tempfile.TemporaryDirectory(prefix="kcode-patch-") as folder:
        run_git(["init", "--quiet", "--bare", "--template=", folder])
        place = ["--git-dir", folder]
        stream = b"".join([*_commit(b"refs/heads/base", base), *_commit(b"refs/heads/present", present), b"done\n"])
        run_git([*place, "fast-import", "--quiet", "--done"], stream)
        shape = ["--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color"]
        return run_git([*place, "diff-tree", "-r", "-p", *shape, "refs/heads/base", "refs/heads/present"])


def _commit(ref: bytes, files: Mapping[bytes, Version]) -> list[bytes]:
    parts = [b"commit %s\ncommitter %s\ndata 0\n" % (ref, WHO)]
    for path, version in sorted(files.items()):
        parts.append(b"M %s inline %s\ndata %d\n%s\n" % (version.mode, _quoted(path), len(version.data), version.data))
    return parts


def _quoted(path: bytes) -> bytes:
    return b'"' + path.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'


def merged(base: bytes, mine: bytes, theirs: bytes) -> bytes | None:
    """The text with both changes, None when they touch the same lines or one of the three is not text. Blocks."""
    if any(b"\0" in text[:8000] for text in (base, mine, theirs)):
        return None
    with tempfile.TemporaryDirectory(prefix="kcode-merge-") as folder:
        places = [Path(folder, name) for name in ("mine", "base", "theirs")]
        for place, data in zip(places, (mine, base, theirs), strict=True):
            place.write_bytes(data)
        done = _run(["merge-file", "-p", "--quiet", *map(str, places)], b"")
        return done.stdout if done.returncode == 0 else None


def run_git(arguments: Sequence[str], stdin: bytes = b"") -> bytes:
    """git without any configuration of the user's or of a repository. Raises SandboxError with its last line."""
    done = _run(arguments, stdin)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise SandboxError(f"git {' '.join(arguments[:3])} failed: {said[-1]}")
    return done.stdout


def _run(arguments: Sequence[str], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    options = [part for option in OPTIONS for part in ("-c", option)]
    try:
        return subprocess.run(
            ["git", *options, *arguments],
            input=stdin,
            capture_output=True,
            cwd="/",
            env=ENVIRONMENT,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise SandboxError("git is not installed; install it to get patches of clones") from error
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"git {' '.join(arguments[:3])} took longer than {GIT_TIMEOUT_S} s") from error
