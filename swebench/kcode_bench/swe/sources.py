"""Where the repositories of a data set come from, and a tree of one commit that knows no other."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from kcode.errors import StartError
from kcode_bench.swe.host_git import GitFailed, git

URL = re.compile(r"[a-z+]+://|[^/\s]+@[^/\s]+:")
# Answers for any commit, though no branch may end there, and whoever owns the folder.
UPLOAD = "git -c uploadpack.allowAnySHA1InWant=true -c safe.directory=* upload-pack"
BRANCH = "main"


@dataclass(frozen=True, slots=True)
class Source:
    """A folder of repositories named owner+name, owner__name or owner/name (or .git behind it), or the address above them."""

    place: str

    @property
    def is_remote(self) -> bool:
        return URL.match(self.place) is not None

    def repository(self, name: str) -> str:
        """The folder or address of the repository `name` (owner/name). Raises StartError naming what was looked for."""
        if self.is_remote:
            return f"{self.place.rstrip('/')}/{name}"
        owner, _, rest = name.partition("/")
        folder = Path(self.place).resolve()
        spellings = [f"{owner}{between}{rest}{end}" for between in ("+", "__", "/") for end in ("", ".git")]
        found = next((folder / spelling for spelling in spellings if (folder / spelling).is_dir()), None)
        if found is None:
            raise StartError(f"--repo-source {self.place} has no repository {name}; looked for {', '.join(spellings)}")
        return str(found)


def check_source(place: str) -> Source:
    """Raises StartError when it is neither an address nor a folder."""
    source = Source(place)
    if not source.is_remote and not Path(place).is_dir():
        raise StartError(f"--repo-source {place}: there is no such folder")
    return source


def check_out(source: Source, repository: str, commit: str, tree: Path) -> None:
    """Make `tree` a repository whose one branch is at `commit`, which is the only one that exists in it.

    There is no remote, no tag, no record of where it came from, and no object that `commit` does not name. An earlier folder is
    replaced. Raises StartError for a repository or commit that is not there.
    """
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    origin = source.repository(repository)
    git("init", "--quiet", "--template=", f"--initial-branch={BRANCH}", ".", cwd=tree)
    address = origin if source.is_remote else f"file://{origin}"
    own = [] if source.is_remote else [f"--upload-pack={UPLOAD}"]
    try:
        git("fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", *own, address, commit, cwd=tree)
    except GitFailed as error:
        raise StartError(f"{repository}: commit {commit} cannot be had from {origin}: {error}") from error
    git("checkout", "--quiet", "-B", BRANCH, commit, cwd=tree)
    (tree / ".git" / "info").mkdir(exist_ok=True)
    for name in ("FETCH_HEAD", "ORIG_HEAD"):
        (tree / ".git" / name).unlink(missing_ok=True)
    shutil.rmtree(tree / ".git" / "logs", ignore_errors=True)
