"""Snapshots of a clone's tree, made inside it: what a clone holds exists nowhere else, and they end with it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from kcode.checkpoint import ATTRIBUTES, DEBRIS, GIT_OPTIONS, GIT_TIMEOUT_S, MAX_FILE_BYTES
from kcode.errors import CheckpointFailed
from kcode_sandbox.errors import SandboxError
from kcode_sandbox.sandbox import Sandbox

MAX_NAMES_BYTES = 64 << 20
_OPTIONS = [item for option in GIT_OPTIONS for item in ("-c", option)]
_EXCLUDES = [f"--exclude={line}" for line in DEBRIS.splitlines()]
# Files and links that are small enough, by their blocks of 512 bytes.
_SMALL = ["(", "-type", "f", "-size", f"-{MAX_FILE_BYTES // 512 + 1}", "-o", "-type", "l", ")"]
_FIND = ["find", ".", "-name", ".git", "-prune", "-o", *_SMALL, "-print0"]


class CloneTree:
    """The tree of the clone behind `sandbox`; `base` is the name that the workspace's own checkpoints have for its beginning."""

    def __init__(self, sandbox: Sandbox, base: str) -> None:
        self._sandbox = sandbox
        self._store = f"/tmp/kcode-tree-{secrets.token_hex(4)}"
        self._base = base
        self._first = ""

    async def snapshot(self) -> str:
        """As in Checkpoints; the first one, which comes before anything is changed, is named `base`."""
        try:
            tree = await self._snapshot()
        except SandboxError as error:
            raise CheckpointFailed(f"the copy of the workspace cannot be snapshotted: {error}") from error
        if not self._first:
            self._first = tree
        return self._base if tree == self._first and self._base else tree

    async def restore(self, snapshot: str) -> None:
        await self.snapshot()
        await self._git("read-tree", "--reset", "-u", self._inner(snapshot))

    async def diff(self, snapshot: str) -> str:
        now = self._inner(await self.snapshot())
        arguments = ["diff-tree", "-r", "-p", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames"]
        return (await self._git(*arguments, self._inner(snapshot), now)).decode("utf-8", "replace")

    async def prune(self) -> None:
        """Everything goes with the clone."""

    def _inner(self, snapshot: str) -> str:
        return self._first if snapshot == self._base else snapshot

    async def _snapshot(self) -> str:
        if not self._first:
            await self._git("init", "--quiet", "--template=", "--bare", self._store, bare=True)
            await self._sandbox.write(f"{self._store}/info/attributes", ATTRIBUTES.encode())
        listed = await self._listed()
        held = set(_split(await self._git("ls-files", "-z", "--cached")))
        gone = held - set(listed)
        if gone:
            await self._git("update-index", "-z", "--force-remove", "--stdin", stdin=_joined(sorted(gone)))
        await self._git("update-index", "-z", "--add", "--remove", "--replace", "--stdin", stdin=_joined(listed))
        return (await self._git("write-tree")).decode().strip()

    async def _listed(self) -> list[bytes]:
        """What git does not ignore: the tracked files and the others."""
        found = await self._sandbox.exec(_FIND, timeout_s=GIT_TIMEOUT_S, separate_stderr=True, max_output=MAX_NAMES_BYTES)
        small = {name.removeprefix(b"./") for name in _split(found.output)}
        others = ["ls-files", "-z", "--others", "--exclude-standard", *_EXCLUDES]
        command = ["git", *_OPTIONS, *others, "--cached"]
        asked = await self._sandbox.exec(command, timeout_s=GIT_TIMEOUT_S, separate_stderr=True, max_output=MAX_NAMES_BYTES)
        if asked.exit_code == 0:
            names = _split(asked.output)
        else:
            names = _split(await self._git(*others, environment={"GIT_INDEX_FILE": f"{self._store}/index.none"}))
        return [name for name in dict.fromkeys(names) if name in small]

    async def _git(
        self, *arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None, bare: bool = False
    ) -> bytes:
        """Run git over the private folder, with the clone as its work tree."""
        place = [] if bare else [f"--git-dir={self._store}", f"--work-tree={self._sandbox.policy.workspace}"]
        done = await self._sandbox.exec(
            ["git", *_OPTIONS, *place, *arguments],
            timeout_s=GIT_TIMEOUT_S,
            environment=environment,
            stdin=stdin,
            separate_stderr=True,
            max_output=MAX_NAMES_BYTES,
        )
        if done.exit_code != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.exit_code}"]
            raise CheckpointFailed(f"git {arguments[0]} failed in the copy of the workspace: {said[-1]}")
        return done.output


def _split(output: bytes) -> list[bytes]:
    return [name for name in output.split(b"\0") if name]


def _joined(names: Sequence[bytes]) -> bytes:
    return b"".join(name + b"\0" for name in names)
