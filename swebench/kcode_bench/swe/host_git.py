"""git outside the sandbox, with nobody's configuration and nothing that a repository could make it run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kcode.errors import InfrastructureError

GIT_TIMEOUT_S = 600.0
OPTIONS = (
    *("core.hooksPath=/dev/null", "core.fsmonitor=", "core.attributesFile=/dev/null", "core.excludesFile=/dev/null"),
    *("core.autocrlf=false", "core.quotePath=false", "gc.auto=0", "maintenance.auto=false", "core.logAllRefUpdates=false"),
    *("protocol.ext.allow=never", "protocol.file.allow=always", "safe.directory=*", "submodule.recurse=false"),
)
_FLAGS = [part for option in OPTIONS for part in ("-c", option)]
KEPT = (
    "PATH",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "no_proxy",
    "NO_PROXY",
)


class GitFailed(InfrastructureError):
    """git ended with an error; the message is its last line."""


def git(*arguments: str, cwd: Path, git_dir: Path | None = None, stdin: bytes = b"") -> bytes:
    """What git says on standard output. With `git_dir` that repository is used and `cwd` is its work tree."""
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"}
    if git_dir is not None:
        environment |= {"GIT_DIR": str(git_dir), "GIT_WORK_TREE": str(cwd)}
    command = ["git", *_FLAGS, *arguments]
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, input=stdin, capture_output=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise GitFailed(f"git {arguments[0]} was ended after {GIT_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise GitFailed(f"git cannot be run: {error.strerror}; install git") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise GitFailed(f"git {arguments[0]}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout
