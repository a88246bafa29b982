"""The repository to repair, as its last commit has it: clean trees to work and verify in, and the commit that comes of it.

The checkout is only read. Everything else happens in a repository of the run's own, which no sandbox ever sees; what sandboxes
get are copies of its trees. Its configuration is git's default, so that credentials that a checkout keeps in `.git` stay there.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kcode.ci.git import Git, GitFailed
from kcode.errors import StartError

# Contents go in and out as they are, whatever .gitattributes in the tree say: a patch is of the files as the agent has them.
ATTRIBUTES = "* -text !eol -filter -ident !working-tree-encoding\n"
DEPTH = 50
"""Commits of the past that the agent can look at."""
DEPENDENCIES = (".venv", "venv", "node_modules")
MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class Checkout:
    """What there is: `base` is the commit, `branch` "" when none is checked out, `below` the folder to work and test in.

    `dirty` are paths with changes that are not committed; `kept` are folders of dependencies that git ignores.
    """

    root: Path
    base: str
    branch: str
    below: str
    dirty: tuple[str, ...]
    kept: tuple[Path, ...]

    @property
    def workspace(self) -> Path:
        """The folder to work and test in."""
        return self.root / self.below


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that a commit has otherwise than its base. `old` and `new` are contents, None where there is none.

    `mode` is git's: 100644, 100755, 120000 for a link, 160000 for a submodule.
    """

    path: str
    old: bytes | None
    new: bytes | None
    old_mode: str
    mode: str


def open_checkout(git: Git, folder: Path, kept: Sequence[str]) -> Checkout:
    """Raises StartError when `folder` is in no repository, has no commit, or one of `kept` is no folder of it."""
    try:
        root = Path(os.fsdecode(git("rev-parse", "--show-toplevel", cwd=folder)).rstrip("\n")).resolve()
        base = git("rev-parse", "--verify", "HEAD^{commit}", cwd=folder).decode().strip()
        branch = git("rev-parse", "--abbrev-ref", "HEAD", cwd=folder).decode(errors="replace").strip()
        status = git("status", "--porcelain", "-z", "--no-renames", "--ignore-submodules=all", cwd=root)
    except GitFailed as error:
        raise StartError(f"--cd {folder}: kcode ci works on a commit of a git repository ({error})") from error
    dirty = tuple(os.fsdecode(line[3:]) for line in status.split(b"\0") if line)
    below = os.path.relpath(folder.resolve(), root)
    places = dict.fromkeys(os.path.normpath(place) for name in DEPENDENCIES for place in (name, f"{below}/{name}"))
    found = [root / name for name in places if _is_own(root / name) and _is_ignored(git, root, name)]
    for name in kept:
        path = root / name
        if Path(name).is_absolute() or ".." in Path(name).parts or len(Path(name).parts) != 1 or not _is_own(path):
            raise StartError(f"--keep {name}: it must be a folder at the top of {root}")
        if not _is_ignored(git, root, name):
            raise StartError(f"--keep {name}: git does not ignore it, so it is there as the commit has it")
        found.append(path)
    return Checkout(root, base, "" if branch == "HEAD" else branch, below, dirty, tuple(dict.fromkeys(found)))


def _is_own(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_ignored(git: Git, root: Path, name: str) -> bool:
    try:
        tracked = git("ls-files", "-z", "--", f":(literal){name}", cwd=root)
        return not tracked and bool(git("check-ignore", "--", f"{name}/", cwd=root))
    except GitFailed:
        return False


class Workshop:
    """The run's own repository, below `folder`."""

    def __init__(self, git: Git, checkout: Checkout, folder: Path) -> None:
        self._git = git
        self._checkout = checkout
        self._folder = folder
        self.seed = folder / "seed"
        """The base as a work tree with its past; never changed, never shown."""

    @property
    def base(self) -> str:
        return self._checkout.base

    def prepare(self) -> None:
        """Fetch the base. Raises GitFailed."""
        self.seed.mkdir()
        self._git("init", "--quiet", "--template=", "--initial-branch=kcode-base", cwd=self.seed)
        (self.seed / ".git" / "info").mkdir()
        (self.seed / ".git" / "info" / "attributes").write_text(ATTRIBUTES)
        source = self._checkout.root.as_uri()
        self._git("fetch", "--quiet", "--no-tags", f"--depth={DEPTH}", source, "HEAD", cwd=self.seed)
        found = self._git("rev-parse", "FETCH_HEAD", cwd=self.seed).decode().strip()
        if found != self.base:
            raise GitFailed(f"{self._checkout.root} changed meanwhile: {self.base[:12]} became {found[:12]}; start again")
        self._git("update-ref", "refs/heads/kcode-base", found, cwd=self.seed)
        # Where the base was fetched from is nobody's business inside.
        (self.seed / ".git" / "FETCH_HEAD").unlink()
        self._git("read-tree", "--reset", "-u", "HEAD", cwd=self.seed)
        if not (self.seed / self._checkout.below).is_dir():
            raise StartError(f"--cd {self._checkout.workspace}: the last commit has no such folder")

    def tree_of(self, patch: bytes) -> str:
        """The id of what `patch`, of the folder to work in, makes of the base. Raises GitFailed when it does not apply."""
        index = self._index("HEAD")
        below = [f"--directory={self._checkout.below}"] if self._checkout.below != "." else []
        self._git("apply", "--cached", "--whitespace=nowarn", *below, "-", cwd=self.seed, stdin=patch, environment=index)
        return self._write(index)

    def with_base(self, tree: str, changes: Iterable[FileChange]) -> str:
        """The tree with these changes taken back."""
        return self._replaced(tree, [(change.path, change.old_mode, change.old) for change in changes])

    def base_with(self, changes: Iterable[FileChange]) -> str:
        """The base with these changes alone."""
        return self._replaced("HEAD", [(change.path, change.mode, change.new) for change in changes])

    def _replaced(self, tree: str, files: Sequence[tuple[str, str, bytes | None]]) -> str:
        index = self._index(tree)
        lines: list[bytes] = []
        for path, mode, data in files:
            blob = "0" * 40
            if data is not None:
                blob = self._git("hash-object", "-w", "--stdin", "--no-filters", cwd=self.seed, stdin=data).decode().strip()
            lines.append(os.fsencode(f"{mode if data is not None else '0'} {blob}\t{path}") + b"\0")
        self._git("update-index", "-z", "--index-info", cwd=self.seed, stdin=b"".join(lines), environment=index)
        return self._write(index)

    def _index(self, tree: str) -> dict[str, str]:
        index = {"GIT_INDEX_FILE": str(self._folder / "index")}
        self._git("read-tree", tree, cwd=self.seed, environment=index)
        return index

    def _write(self, index: dict[str, str]) -> str:
        return self._git("write-tree", cwd=self.seed, environment=index).decode().strip()

    def changes(self, tree: str) -> tuple[FileChange, ...]:
        """How the tree differs from the base, by path."""
        said = self._git("diff-tree", "-r", "-z", "--no-renames", "HEAD", tree, cwd=self.seed).split(b"\0")
        found: list[FileChange] = []
        for facts, path in zip(said[0::2], said[1::2], strict=False):
            old_mode, mode, old, new, _ = facts.decode().lstrip(":").split(" ")
            found.append(FileChange(os.fsdecode(path), self._blob(old, old_mode), self._blob(new, mode), old_mode, mode))
        return tuple(found)

    def _blob(self, name: str, mode: str) -> bytes | None:
        if set(name) == {"0"}:
            return None
        return b"" if mode == "160000" else self._git("cat-file", "blob", name, cwd=self.seed)

    def lay_out(self, tree: str) -> Path:
        """A new folder with the files of the tree, over the base's commit; remove it with `drop`.

        It shares its files with the seed, where git replaces them and never writes into them: it is only to be copied.
        """
        folder = self._folder / f"tree-{secrets.token_hex(8)}"
        shutil.copytree(self.seed, folder, symlinks=True, copy_function=os.link)
        self._git("read-tree", "--reset", "-u", tree, cwd=folder)
        return folder

    def drop(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def commit(self, tree: str, branch: str, message: str, author: tuple[str, str]) -> str:
        """The id of a commit of the tree on the base, which `branch` names from now on."""
        name, address = author
        who = {
            f"GIT_{role}_{what}": text for role in ("AUTHOR", "COMMITTER") for what, text in (("NAME", name), ("EMAIL", address))
        }
        arguments = ["commit-tree", tree, "-p", self.base, "-F", "-"]
        found = self._git(*arguments, cwd=self.seed, stdin=message.encode(), environment=who).decode().strip()
        self._git("update-ref", f"refs/heads/{branch}", found, cwd=self.seed)
        return found

    def patch_of(self, commit: str) -> bytes:
        """For `git am` and `git apply`."""
        shape = ["--stdout", "--binary", "--full-index", "--no-renames", "--no-signature", "--no-ext-diff", "--no-textconv"]
        return self._git("format-patch", "-1", *shape, commit, cwd=self.seed)

    def diff_of(self, tree: str) -> str:
        """For people."""
        shape = ["-r", "-p", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color"]
        return self._git("diff-tree", *shape, "HEAD", tree, cwd=self.seed).decode(errors="replace")

    def bundle(self, branch: str, file: Path) -> None:
        """The branch as a file to fetch from; whoever fetches has the base."""
        self._git("bundle", "create", "--quiet", str(file), f"{self.base}..refs/heads/{branch}", cwd=self.seed)


def named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return ", ".join(paths[:MAX_NAMED]) + more
