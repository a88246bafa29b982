"""What an agent changed, taken from its tree by a git that believes nothing of what the agent left in it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from kcode_bench.swe.environment import Place
from kcode_bench.swe.host_git import git
from kcode_bench.swe.specs import changed_files

SCRATCH = (".kcode",)
DIFF = (
    *("diff", "--cached", "--binary", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames"),
    "--ignore-submodules=all",
)


def extract_patch(place: Place, test_patch: str) -> bytes:
    """The changes of `place.tree` against the commit it was made of, without the files of `test_patch`.

    The repository that is asked is a copy of the prepared one: the agent's own commits, configuration, hooks and filters do not
    count. What an agent made a repository of its own is no change.
    """
    with tempfile.TemporaryDirectory(prefix="kcode-swe-") as folder:
        own = Path(folder) / "git"
        shutil.copytree(place.prepared / ".git", own, symlinks=True)
        (own / "index.lock").unlink(missing_ok=True)
        git("read-tree", "HEAD", cwd=place.tree, git_dir=own)
        git("add", "--all", "--", ".", cwd=place.tree, git_dir=own)
        nested = [
            line.partition(b"\t")[2].decode(errors="surrogateescape")
            for line in git("ls-files", "--stage", "-z", cwd=place.tree, git_dir=own).split(b"\0")
            if line.startswith(b"160000 ")
        ]
        left_out = [f":(top,exclude,literal){name}" for name in (*changed_files(test_patch), *SCRATCH, *nested)]
        return git(*DIFF, "HEAD", "--", ".", *left_out, cwd=place.tree, git_dir=own)
