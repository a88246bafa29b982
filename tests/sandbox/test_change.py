"""A policy that is changed while the sandbox runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kcode_sandbox.policy import parse_network
from tests.sandbox.conftest import Start, bash, git


async def test_hosts_are_added_at_once_and_a_network_by_a_restart_that_keeps_the_shell(start: Start) -> None:
    sandbox = await start()
    shell = await sandbox.shell()
    await shell.run("export KEPT='a b'; mkdir d; cd d", 20)
    hosts = parse_network("a.org")[1]
    assert await sandbox.change(replace(sandbox.policy, network="allow-list", hosts=hosts))
    said = await shell.run('echo "$KEPT" $PWD; test -n "$http_proxy"', 20)
    assert (said.exit_code, said.output.split()[:2]) == (0, [b"a", b"b"])
    assert said.output.strip().endswith(b"/workspace/d")
    more = parse_network("a.org,b.org")[1]
    assert not await sandbox.change(replace(sandbox.policy, hosts=more))
    denied = await bash(sandbox, "curl -sS https://c.org/ || true")
    assert "only a.org, b.org" in denied.violations[0].rule
    assert await sandbox.change(replace(sandbox.policy, network="off", hosts=()))
    assert (await shell.run('test -z "$http_proxy"', 20)).exit_code == 0


async def test_repositories_in_other_writable_folders_are_protected_too(start: Start, workspace: Path) -> None:
    other = workspace.parent / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    sandbox = await start(writable=(other,))
    result = await bash(
        sandbox, f"cd {other} && touch new && ! echo x >> .git/config && ! touch .git/hooks/pre-commit && echo x > .envrc"
    )
    assert result.exit_code == 0, result.output
    assert result.held == (str(other / ".envrc"),)


async def test_what_is_the_programs_own_is_never_writable_even_in_the_workspace(start: Start, workspace: Path) -> None:
    own = workspace / "deep/venv"
    own.mkdir(parents=True)
    (own / "code.py").write_text("ours")
    sandbox = await start(protect=(own, Path("/usr")))
    result = await bash(sandbox, "echo x > deep/code; echo x > deep/venv/code.py; mv deep other; rm -rf deep/venv; exit 1")
    assert (own / "code.py").read_text() == "ours"
    assert (workspace / "deep/code").exists()
    assert {violation.kind for violation in result.violations} == {"write"}, result.output
