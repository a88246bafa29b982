"""git on the host, with nobody's configuration, and nothing that a repository could make it run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from kcode.errors import InfrastructureError

TIMEOUT_S = 600.0
# Read by the processes that git starts for a local fetch, too, unlike what is given with -c.
CONFIGURATION = """[safe]
\tdirectory = *
[core]
\thooksPath = /dev/null
\tfsmonitor = false
\tattributesFile = /dev/null
\texcludesFile = /dev/null
\tautocrlf = false
\tquotePath = false
[protocol "ext"]
\tallow = never
[gc]
\tauto = 0
[maintenance]
\tauto = false
[submodule]
\trecurse = false
[credential]
\thelper =
"""
# What a repository's own configuration must not say either.
OVERRIDES = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "credential.helper=")
KEPT = (
    *("PATH", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO"),
    *("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"),
)


class GitFailed(InfrastructureError):
    """git ended with an error; the message is its last line."""


class Git:
    """`configuration` is the only one that is read beside that of the repository at hand."""

    def __init__(self, configuration: Path) -> None:
        configuration.write_text(CONFIGURATION)
        self._configuration = configuration

    def __call__(self, *arguments: str, cwd: Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> bytes:
        """What git says on standard output. Raises GitFailed."""
        known = {name: os.environ[name] for name in KEPT if name in os.environ}
        known |= {
            "HOME": "/nonexistent",
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self._configuration),
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            # Content that a repository keeps elsewhere would have to be fetched by a program.
            "GIT_LFS_SKIP_SMUDGE": "1",
        }
        try:
            done = subprocess.run(
                ["git", *OVERRIDES, *arguments],
                cwd=cwd,
                env=known | dict(environment or {}),
                input=stdin,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise GitFailed(f"git {arguments[0]} was ended after {TIMEOUT_S:g} s") from error
        except OSError as error:
            raise GitFailed(f"git cannot be run: {error.strerror}; install git") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            raise GitFailed(f"git {arguments[0]}: {said[-1]}")
        return done.stdout
