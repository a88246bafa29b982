"""A workspace that belongs to another user: the error says so, and the way out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.repositories import protect
from tests.sandbox.conftest import git

OTHER = 65534


@pytest.fixture
def denied() -> Iterator[Path]:
    """A repository this process may read and not write: as root it takes another user, as an ordinary one its modes do it."""
    folder = Path(tempfile.mkdtemp(prefix="kcode-foreign-"))
    git(folder, "init", "--quiet")
    for path in (folder, folder / ".git"):
        path.chmod(0o555)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(OTHER)
    try:
        yield folder
    finally:
        if was_root:
            os.seteuid(0)
        for path in (folder, folder / ".git"):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_the_owner_and_the_way_out_are_named(denied: Path) -> None:
    with pytest.raises(SandboxUnavailableError) as caught:
        protect(denied)
    text = str(caught.value)
    assert text.startswith(f"{denied}/.git/commondir cannot be protected, kcode may not write there")
    assert "git clone" in text
    assert "--sandbox read-only" in text
    assert (f"{denied} belongs to root and kcode runs as " in text) == (os.geteuid() == OTHER)
    assert not (denied / ".git/commondir").exists()
