"""What git would run on the host afterwards must be out of reach, and git must work inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcode_sandbox.errors import SandboxUnavailableError
from tests.sandbox.conftest import Start, bash, exists, found, git, names

ATTACKS = (
    "echo 'touch ran' > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit",
    "git config core.fsmonitor 'touch ran'",
    "printf '[core]\\n\\tfsmonitor = touch ran\\n' >> .git/config",
    "rm -rf .git/hooks; mkdir .git/hooks",
    "mv .git old && cp -r old .git && git config core.fsmonitor 'touch ran'",
    "cp -r .git evil && git config -f evil/config core.fsmonitor 'touch ran' && echo ../evil > .git/commondir",
    "rm -f .git/commondir; ln -s ../evil .git/commondir",
    "mv .git/config .git/c2; mv .git/hooks .git/h2",
)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_no_payload_runs_at_the_next_git_command(start: Start, repository: Path, attack: str) -> None:
    before = {name: (repository / ".git" / name).read_bytes() for name in ("config", "HEAD")}
    sandbox = await start()
    await bash(sandbox, attack)
    await sandbox.close()
    assert {name: (repository / ".git" / name).read_bytes() for name in ("config", "HEAD")} == before
    (repository / "b.txt").write_text("b")
    git(repository, "add", "b.txt")
    git(repository, "status")
    git(repository, "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "--quiet", "--message=after")
    assert not found(repository, "**/ran")


async def test_everyday_git_works_inside(start: Start, repository: Path) -> None:
    sandbox = await start()
    result = await bash(
        sandbox,
        "set -e; git status --short; echo two >> a.txt; git diff --stat; git commit -qam second; git checkout -qb topic;"
        "echo x > x; git add x; git stash -q; git stash pop -q; git commit -qm third; git checkout -q main; git merge -q topic;"
        "git gc -q; git fsck; git worktree add -q /tmp/tree HEAD; git worktree remove /tmp/tree; git log --format='%an %ae %s'",
    )
    assert result.exit_code == 0, result.output
    assert result.output.endswith(b"Ada ada@example.org third\nAda ada@example.org second\nT t@example.org first\n")
    await sandbox.close()
    assert git(repository, "log", "--format=%s") == "third\nsecond\nfirst\n"
    assert not exists(repository / ".git/commondir")


async def test_hooks_and_included_files_named_by_the_configuration_are_protected(start: Start, repository: Path) -> None:
    (repository / ".husky").mkdir()
    (repository / "team.gitconfig").write_text("[core]\n")
    git(repository, "config", "core.hooksPath", ".husky")
    git(repository, "config", "include.path", "../team.gitconfig")
    sandbox = await start()
    result = await bash(sandbox, "touch .husky/pre-commit; echo '[core]' >> team.gitconfig; mv .husky h; mv team.gitconfig t")
    assert result.exit_code != 0
    assert names(repository / ".husky") == []
    assert (repository / "team.gitconfig").read_text() == "[core]\n"


async def test_nested_repositories_are_protected_too(start: Start, repository: Path) -> None:
    nested = repository / "third/party"
    nested.mkdir(parents=True)
    git(nested, "init", "--quiet")
    before = (nested / ".git/config").read_bytes()
    sandbox = await start()
    await bash(
        sandbox, "git -C third/party config core.fsmonitor x; mv third t; mv third/party p; touch third/party/.git/hooks/x"
    )
    assert (nested / ".git/config").read_bytes() == before
    assert not exists(nested / ".git/hooks/x")
    assert (await bash(sandbox, "cd third/party && echo x > y && git add y && git commit -qm nested")).exit_code == 0


async def test_a_linked_worktree_works_and_its_repository_is_protected(start: Start, repository: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(repository, "worktree", "add", "--quiet", str(tree))
    before = (repository / ".git/config").read_bytes()
    sandbox = await start(workspace=tree.resolve())
    result = await bash(sandbox, "echo z > z && git add z && git commit -qm inside")
    assert result.exit_code == 0, result.output
    await bash(
        sandbox, f"git config core.fsmonitor x; echo gitdir: /tmp > .git; touch {repository}/.git/hooks/x; touch {repository}/new"
    )
    assert (repository / ".git/config").read_bytes() == before
    assert not exists(repository / ".git/hooks/x")
    assert not exists(repository / "new")
    assert git(tree, "log", "--format=%s", "-1") == "inside\n"


async def test_a_git_file_that_points_anywhere_opens_nothing(start: Start, workspace: Path, home: Path) -> None:
    git(home, "init", "--quiet", "--bare", "other.git")
    (workspace / ".git").write_text(f"gitdir: {home}/other.git\n")
    sandbox = await start()
    assert (await bash(sandbox, f"ls {home}/other.git")).exit_code != 0


async def test_two_sessions_share_the_protection(start: Start, repository: Path) -> None:
    first, second = await start(), await start()
    await first.close()
    result = await bash(second, "echo ../evil > .git/commondir")
    assert result.exit_code != 0
    assert (repository / ".git/commondir").read_text() == ".\n"
    await second.close()
    assert not exists(repository / ".git/commondir")


async def test_links_in_the_way_and_foreign_redirections_stop_the_start(start: Start, repository: Path, tmp_path: Path) -> None:
    (repository / ".git/commondir").write_text("../elsewhere\n")
    with pytest.raises(SandboxUnavailableError, match="commondir"):
        await start()
    (repository / ".git/commondir").unlink()
    hooks = repository / ".git/hooks"
    hooks.rename(tmp_path / "hooks")
    hooks.symlink_to(tmp_path / "hooks")
    with pytest.raises(SandboxUnavailableError, match="symbolic link"):
        await start()
    assert not exists(repository / ".git/commondir")


async def test_an_alias_of_the_user_does_not_enter(start: Start, repository: Path) -> None:
    sandbox = await start()
    assert (await bash(sandbox, "git st")).exit_code == 1
    assert not exists(Path("/tmp/ran"))
