"""The git configuration of the private home: who the user is, and nothing that runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

# Values only; never aliases, filters, helpers or programs.
PATTERN = r"^(user\.(name|email)|init\.defaultbranch|core\.(autocrlf|eol|quotepath)|pull\.rebase)$"
TIMEOUT_S = 5.0


async def private_git_configuration(home: Path) -> bytes:
    """A .gitconfig with the user's name and habits. Without a name on the host, commits inside are by kcode."""
    values = {"user.name": "kcode", "user.email": "kcode@localhost", "init.defaultbranch": "main"}
    values |= await _global_values(home)
    lines = ["[safe]", "\tdirectory = *", "[gc]", "\tauto = 0", "[advice]", "\tdetachedHead = false"]
    for key, value in values.items():
        section, _, name = key.partition(".")
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
        lines += [f"[{section}]", f'\t{name} = "{escaped}"']
    return ("\n".join(lines) + "\n").encode()


async def _global_values(home: Path) -> dict[str, str]:
    """Read by git itself, outside any repository, so that no repository's configuration takes part."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "GIT_CEILING_DIRECTORIES": "/"}
    try:
        process = await asyncio.create_subprocess_exec(
            *("git", "config", "--global", "--null", "--get-regexp", PATTERN),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",
            env=environment,
        )
    except FileNotFoundError:
        return {}
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return {}
    entries = (entry.partition("\n") for entry in output.decode(errors="replace").split("\0") if entry)
    return {key: value for key, _, value in entries}
