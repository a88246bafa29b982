"""Snapshots of the user's tree in a private git directory; the user's own repository is only ever read.

A snapshot holds the tracked files and those git does not ignore, up to 2 MB each. Git runs on the host with hooks, fsmonitor,
filters and all configuration but our own switched off.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kcode.errors import CheckpointFailed
from kcode.three_way import TakenBack, carry_over, files_of, merge_blobs
from kcode.tree_objects import Remembered, Stamp, stamp_of

MAX_FILE_BYTES = 2 << 20
MAX_FILES = 50_000
MAX_STORE_BYTES = 1 << 30
KEEP_S = 30 * 24 * 3600
PRUNE_EVERY_S = 24 * 3600
GIT_TIMEOUT_S = 60
# What runs leave behind; ignored even where the project has no .gitignore for it.
DEBRIS = "__pycache__/\n*.py[co]\n.pytest_cache/\n.mypy_cache/\n.ruff_cache/\n.hypothesis/\n.venv/\nnode_modules/\n.kcode/\n"
# Contents go in and out as they are, whatever .gitattributes in the tree say.
ATTRIBUTES = "* -text !eol -filter -ident !working-tree-encoding\n"
GIT_OPTIONS = (
    "core.hooksPath=/dev/null",
    "core.bare=false",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.autocrlf=false",
    "core.safecrlf=false",
    "core.quotePath=false",
    "core.attributesFile=/dev/null",
    "core.looseCompression=1",
    "gc.auto=0",
    "safe.directory=*",
)


class Checkpoints:
    """The snapshots of one workspace. Several processes may share the store: each operation holds its lock."""

    def __init__(self, workspace: Path, store: Path) -> None:
        self._workspace = workspace
        self._store = store
        self._ready = False
        self._is_repository: bool | None = None
        self._remembered: Remembered | None = None
        self._held: _StoreLock | None = None

    async def snapshot(self) -> str:
        """Keep the tree as it is now; the name of the snapshot (a git tree id: equal trees have equal names)."""
        return await asyncio.to_thread(self._locked_snapshot)

    async def restore(self, snapshot: str) -> None:
        """Make the tree what it was: changed files back, later files gone. Files a snapshot never held stay.

        The tree as it was before is snapshotted first, so a restore can be undone by restoring that.
        """
        await asyncio.to_thread(self._restore, snapshot)

    async def change_back(self, changes: Sequence[tuple[str, str]]) -> TakenBack:
        """Carry the changes from one snapshot to another, in order, over to the tree as it is, with what others did to it.

        A file changed by both is merged; where it cannot be, it is left alone and named. Raises CheckpointFailed with the tree
        untouched when a snapshot is not kept any more.
        """
        return await asyncio.to_thread(self._change_back, changes)

    async def diff(self, snapshot: str) -> str:
        """A unified diff from `snapshot` to the tree as it is now; "" when they are equal."""
        return await asyncio.to_thread(self._diff, snapshot)

    async def is_dirty(self) -> bool:
        """Whether the user's repository has uncommitted work; False where there is no repository."""
        return await asyncio.to_thread(self._dirty)

    async def prune(self) -> None:
        """Drop snapshots older than 30 days, and all but the last day's when the store is over 1 GB. Looks once a day."""
        await asyncio.to_thread(self._prune)

    # What follows runs in a worker thread.

    def _prune(self) -> None:
        marker = self._store / "pruned"
        if not (self._store / "HEAD").is_file() or (marker.exists() and time.time() - marker.stat().st_mtime < PRUNE_EVERY_S):
            return
        with self._lock():
            marker.touch()
            size = sum(file.stat().st_size for file in self._store.rglob("*") if file.is_file())
            keep_s = KEEP_S if size <= MAX_STORE_BYTES else 24 * 3600
            old = [ref for ref in (self._store / "refs" / "kcode").glob("*") if time.time() - ref.stat().st_mtime > keep_s]
            for ref in old:
                ref.unlink()
            if old:
                self._git(["gc", "--quiet", "--prune=now"])

    def _locked_snapshot(self) -> str:
        with self._lock():
            return self._snapshot()

    def _snapshot(self) -> str:
        self._prepare()
        stamps = self._listed()
        known = self._remembered
        # Another process may have pruned what the last snapshot of this one rests on.
        if known is not None and self._ref(known.tree).is_file():
            tree = known.update(stamps)
        else:
            tree = self._snapshot_by_git(stamps)
        self._ref(tree).write_text(tree + "\n")
        return tree

    def _snapshot_by_git(self, stamps: dict[str, Stamp]) -> str:
        """Read every file, with git's index to tell what has not changed since whoever snapshotted last."""
        held = set(_split(self._git(["ls-files", "-z", "--cached"])))
        gone = held - set(stamps)
        if gone:
            self._git(["update-index", "-z", "--force-remove", "--stdin"], _joined(sorted(gone)))
        # Without a name on standard input update-index has nothing to look at, which is an empty tree.
        self._git(["update-index", "-z", "--add", "--remove", "--replace", "--stdin"], _joined(list(stamps)))
        tree = self._git(["write-tree"]).decode().strip()
        staged = (line.split("\t", 1) for line in _split(self._git(["ls-files", "-z", "--stage"])))
        files = ((facts.split(" ")[0], facts.split(" ")[1], name) for facts, name in staged)
        self._remembered = Remembered(self._store, self._workspace, MAX_FILE_BYTES, tree, files)
        self._remembered.trust(stamps)
        return tree

    def _ref(self, tree: str) -> Path:
        return self._store / "refs" / "kcode" / tree

    def _restore(self, snapshot: str) -> None:
        with self._lock():
            before = self._snapshot()
            self._known(snapshot)
            self._check_out(before, snapshot)

    def _check_out(self, before: str, snapshot: str) -> None:
        """Bring the tree, which is `before`, to `snapshot`."""
        changed = _split(self._git(["diff-tree", "-r", "-z", "--name-status", "--no-renames", before, snapshot]))
        states = list(zip(changed[0::2], changed[1::2], strict=True))
        for name in (name for state, name in states if state == "D"):
            self._remove(name)
        wanted = [name for state, name in states if state != "D"]
        if wanted:
            index = {"GIT_INDEX_FILE": str(self._store / "index.restore")}
            self._git(["read-tree", snapshot], environment=index)
            self._git(["checkout-index", "-f", "-z", "--stdin"], _joined(wanted), environment=index)

    def _change_back(self, changes: Sequence[tuple[str, str]]) -> TakenBack:
        with self._lock():
            now = self._snapshot()
            for snapshot in {snapshot for change in changes for snapshot in change}:
                self._known(snapshot)
            pairs = [(files_of(self._git, source), files_of(self._git, target)) for source, target in changes]
            files, done = carry_over(files_of(self._git, now), pairs, partial(merge_blobs, self._git, self._store))
            index = {"GIT_INDEX_FILE": str(self._store / "index.restore")}
            self._git(["read-tree", "--empty"], environment=index)
            lines = (os.fsencode(f"{mode} {blob}\t{path}") for path, (mode, blob) in files.items())
            self._git(["update-index", "-z", "--index-info"], b"".join(line + b"\0" for line in lines), environment=index)
            wanted = self._git(["write-tree"], environment=index).decode().strip()
            self._check_out(now, wanted)
            return done

    def _diff(self, snapshot: str) -> str:
        with self._lock():
            now = self._snapshot()
            self._known(snapshot)
            if now == snapshot:
                return ""
            arguments = ["diff-tree", "-r", "-p", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", snapshot, now]
            return self._git(arguments).decode("utf-8", "replace")

    def _dirty(self) -> bool:
        if not self._repository():
            return False
        return bool(self._user_git(["status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=all"]))

    def _known(self, snapshot: str) -> None:
        if not self._ref(snapshot).is_file():
            raise CheckpointFailed(f"checkpoint {snapshot[:12]!r} is no longer kept (checkpoints last 30 days)")

    def _remove(self, name: str) -> None:
        """Delete one file, and the folders that are empty without it. Never through a link that leads elsewhere."""
        path = self._workspace / name
        if path.parent.resolve() != self._workspace.resolve() / Path(name).parent:
            return
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self._workspace or any(parent.iterdir()):
                return
            parent.rmdir()

    def _listed(self) -> dict[str, Stamp]:
        """The files a snapshot holds, as paths relative to the workspace, with their stamps."""
        now_ns = time.time_ns()
        arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", f"--exclude-from={self._store / 'debris'}"]
        if self._repository():
            output = self._user_git(arguments)
        else:
            no_index = {"GIT_INDEX_FILE": str(self._store / "index.none")}
            output = self._git([item for item in arguments if item != "--cached"], environment=no_index)
        stamps: dict[str, Stamp] = {}
        for name in dict.fromkeys(_split(output)):
            try:
                found = os.lstat(self._workspace / name)
            except OSError:
                continue
            if stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_size <= MAX_FILE_BYTES):
                stamps[name] = stamp_of(found, now_ns)
        if len(stamps) > MAX_FILES:
            raise CheckpointFailed(f"the tree has {len(stamps)} files that git does not ignore, checkpoints hold {MAX_FILES}")
        return stamps

    def _repository(self) -> bool:
        """Whether the workspace lies in a git work tree of the user's."""
        if self._is_repository is None:
            try:
                answer = self._user_git(["rev-parse", "--is-inside-work-tree"])
            except CheckpointFailed:
                answer = b""
            self._is_repository = answer.strip() == b"true"
        return self._is_repository

    def _prepare(self) -> None:
        if self._ready:
            return
        if not (self._store / "HEAD").is_file():
            self._store.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._git(["init", "--quiet", "--template=", "--bare", str(self._store)], bare=True)
        (self._store / "info").mkdir(exist_ok=True)
        (self._store / "info" / "attributes").write_text(ATTRIBUTES)
        (self._store / "info" / "exclude").write_text(DEBRIS)
        (self._store / "debris").write_text(DEBRIS)
        (self._store / "refs" / "kcode").mkdir(parents=True, exist_ok=True)
        self._ready = True

    def _lock(self) -> _StoreLock:
        self._held = _StoreLock(self._store.with_name(self._store.name + ".lock"))
        return self._held

    def _git(
        self, arguments: Sequence[str], stdin: bytes = b"", *, environment: dict[str, str] | None = None, bare: bool = False
    ) -> bytes:
        """Run git over the private directory with the workspace as its work tree."""
        place = {} if bare else {"GIT_DIR": str(self._store), "GIT_WORK_TREE": str(self._workspace)}
        # A git that outlives a killed kcode keeps the lock until it has ended.
        kept = (self._held.descriptor,) if self._held is not None and self._held.descriptor >= 0 else ()
        return _run_git(self._workspace, arguments, stdin, place | (environment or {}), kept)

    def _user_git(self, arguments: Sequence[str]) -> bytes:
        """Run a reading git command over the user's repository."""
        return _run_git(self._workspace, arguments, b"", {"GIT_OPTIONAL_LOCKS": "0"})


class _StoreLock:
    """An exclusive lock over the processes that share a store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = -1

    def __enter__(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        # A process that was killed may have left git's own lock behind, which would stop every snapshot from then on.
        for left in ("index.lock", "index.restore.lock", "index.none.lock"):
            (self._path.with_suffix("") / left).unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        self.descriptor = -1


def find_git() -> str | None:
    """The git program, or None."""
    return shutil.which("git")


def _run_git(
    folder: Path, arguments: Sequence[str], stdin: bytes, environment: dict[str, str], kept: tuple[int, ...] = ()
) -> bytes:
    git = find_git()
    if git is None:
        raise CheckpointFailed("git is not installed; install it to get checkpoints, undo and diffs")
    options = [item for option in GIT_OPTIONS for item in ("-c", option)]
    base = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent", "LC_ALL": "C"}
    base |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_ATTR_NOSYSTEM": "1"}
    try:
        done = subprocess.run(
            [git, *options, *arguments],
            cwd=folder,
            env=base | environment,
            input=stdin,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
            pass_fds=kept,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointFailed(f"git {arguments[0]} took longer than {GIT_TIMEOUT_S} s in {folder}") from error
    except OSError as error:
        raise CheckpointFailed(f"cannot run git in {folder}: {error.strerror}") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise CheckpointFailed(f"git {arguments[0]} failed in {folder}: {said[-1]}")
    return done.stdout


def _split(output: bytes) -> list[str]:
    return [os.fsdecode(name) for name in output.split(b"\0") if name]


def _joined(names: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)
