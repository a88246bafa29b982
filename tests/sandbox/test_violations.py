"""What the walls stop is told as facts: the rule, the thing, and what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcode_sandbox.errors import FileError
from kcode_sandbox.places import HIDDEN, OUTSIDE, PROTECTED, READ_ONLY, Places
from kcode_sandbox.policy import Limits, Policy, parse_network
from kcode_sandbox.sandbox import ExecResult
from kcode_sandbox.violation import Violation, collecting, report, told
from tests.sandbox.conftest import Start, bash

CONNECT = "python3 -c 'import socket; socket.create_connection((\"192.0.2.7\", 80), 5)'"


def seen(result: ExecResult) -> list[tuple[str, str]]:
    return [(violation.kind, violation.rule) for violation in result.violations]


async def test_an_attempt_to_reach_the_outside_is_told_from_the_kernels_count(start: Start) -> None:
    sandbox = await start()
    result = await bash(sandbox, CONNECT)
    assert seen(result) == [("network", "network is off in this sandbox")]
    lookup = await bash(sandbox, "python3 -c 'import socket; socket.getaddrinfo(\"example.org\", 80)'; true")
    assert seen(lookup) == [("network", "network is off in this sandbox")], "also when the command itself goes on"
    shell = await sandbox.shell()
    said = await shell.run(CONNECT, 20)
    assert [violation.kind for violation in said.violations] == ["network"]
    assert (await shell.run("true", 20)).violations == ()


async def test_local_traffic_and_failures_without_a_rule_are_no_violations(start: Start, workspace: Path) -> None:
    sandbox = await start()
    server = "python3 -m http.server -b 127.0.0.1 8765 >/dev/null 2>&1 & sleep 1; "
    result = await bash(sandbox, f"{server} python3 -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:8765\")'")
    assert (result.exit_code, result.violations) == (0, ()), result.output
    (workspace / "locked").write_text("")
    (workspace / "locked").chmod(0)
    result = await bash(sandbox, "cat nothing /usr/nothing /tmp/nothing locked; mkdir a/b/c; cat a:b; kill 1; exit 3")
    assert result.violations == (), result.output


async def test_a_host_that_is_not_listed_is_named(start: Start) -> None:
    network, hosts = parse_network("example.org")
    sandbox = await start(network=network, hosts=hosts)
    result = await bash(sandbox, "curl -sS https://evil.example.net/ || true")
    assert [(violation.kind, violation.what) for violation in result.violations] == [("network", "evil.example.net:443")]
    assert "only example.org" in result.violations[0].rule
    assert (await bash(sandbox, "true")).violations == ()
    past = await bash(sandbox, CONNECT)
    assert "through the proxy" in past.violations[0].rule


async def test_protected_and_outside_paths_are_told_with_their_rule(start: Start, repository: Path) -> None:
    sandbox = await start()
    result = await bash(sandbox, "git config core.fsmonitor x; echo x >> .git/hooks/pre-commit; exit 1")
    assert {violation.rule for violation in result.violations} == {PROTECTED}
    assert any(violation.what == str(repository / ".git/config") for violation in result.violations), result.output
    for script, what in (
        ("touch /usr/x", "/usr/x"),
        ('python3 -c \'open("/usr/y", "w")\'', "/usr/y"),
        ("mkdir /srv2", "/srv2"),
    ):
        result = await bash(sandbox, script)
        assert [(violation.rule, violation.what) for violation in result.violations] == [(OUTSIDE, what)], result.output


async def test_what_is_not_shown_is_told_without_saying_whether_it_exists(start: Start) -> None:
    sandbox = await start()
    for path in ("/root/.bashrc", "/home/nobody-has-this-name/.netrc"):
        result = await bash(sandbox, f"cat {path}")
        assert [(violation.kind, violation.rule) for violation in result.violations] == [("read", HIDDEN)], result.output


async def test_what_was_held_is_among_it(start: Start) -> None:
    sandbox = await start()
    result = await bash(sandbox, "echo x > .envrc")
    assert [(violation.kind, violation.what) for violation in result.violations] == [("held", ".envrc")]


async def test_limits_are_told(start: Start) -> None:
    sandbox = await start(limits=Limits(file_bytes=1 << 20, tmp_bytes=2 << 20))
    large = await bash(sandbox, "head -c 3000000 /dev/zero > big")
    assert [violation.rule for violation in large.violations] == ["at most 1 MiB for one file in this sandbox"], large.output
    full = await bash(sandbox, "for n in 1 2 3 4; do head -c 1000000 /dev/zero > /tmp/$n || exit 1; done")
    assert ["in /tmp" in violation.rule for violation in full.violations] == [True], full.output
    long = await sandbox.exec(["head", "-c", "100000", "/dev/zero"], timeout_s=20, max_output=1000)
    assert [violation.kind for violation in long.violations] == ["limit"]


async def test_file_requests_report_theirs_to_whoever_collects(start: Start, repository: Path) -> None:
    sandbox = await start()
    with collecting() as found:
        with pytest.raises(FileError):
            await sandbox.write(".git/config", b"x")
        with pytest.raises(FileError):
            await sandbox.read("/root/.netrc")
        await sandbox.write(".envrc", b"x")
        await bash(sandbox, CONNECT)
    assert [violation.kind for violation in found] == ["write", "read", "held", "network"]
    with collecting() as found, pytest.raises(FileError):
        await sandbox.read("nothing")
    assert found == []


async def test_without_walls_nothing_is_claimed(start: Start, repository: Path) -> None:
    sandbox = await start(profile="danger-full-access")
    result = await bash(sandbox, "cat /no/such/file; touch /proc/x; exit 1")
    assert result.violations == ()


async def test_a_read_only_profile_says_so(start: Start) -> None:
    sandbox = await start(profile="read-only")
    result = await bash(sandbox, "touch new.txt")
    assert [violation.rule for violation in result.violations] == [READ_ONLY], result.output


@pytest.mark.parametrize(
    ("line", "rules"),
    [
        ("Error: EROFS: read-only file system, open '/usr/lib/x.js'", [OUTSIDE]),
        ("error: failed to write `/opt/x`: Read-only file system (os error 30)", [OUTSIDE]),
        ("error: could not write config file .git/config: Device or resource busy", [PROTECTED]),
        ("mv: cannot move '.git' to 'g': Device or resource busy", [PROTECTED]),
        ("cat: /home/me/.netrc: No such file or directory", [HIDDEN]),
        ("gcc: error: missing.c: No such file or directory", []),
        ("the file /opt/x is read in this test", []),
        ("http://example.org/a: No such file or directory", []),
        ("/ws/a.py: Permission denied", []),
    ],
)
def test_only_a_path_under_a_rule_with_an_error_explains_a_failure(line: str, rules: list[str]) -> None:
    places = Places(Policy(Path("/ws")), protected=(Path("/ws/.git/config"),))
    assert [violation.rule for violation in places.explain(f"noise\n{line}\n", ".")] == rules


def test_the_model_is_told_one_line_for_each_kind() -> None:
    first, second = (Violation("network", host, "only a.org can be reached", "ask") for host in ("b.org:443", "c.org:443"))
    write = Violation("write", "/usr/x", "nothing outside", "write inside")
    assert told([first, second, write, first]) == [
        "[sandbox: only a.org can be reached: b.org:443; ask (1 more like it)]",
        "[sandbox: nothing outside: /usr/x; write inside]",
    ]


def test_nobody_collecting_is_no_error() -> None:
    report([Violation("network", "x", "y", "z")])
