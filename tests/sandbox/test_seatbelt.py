"""The profile for macOS, read as Seatbelt reads it: the last rule that matches decides. No real macOS has seen it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.explain import explain
from kcode_sandbox.policy import Policy, parse_network
from kcode_sandbox.seatbelt import parameters_of, seatbelt_profile

SESSION = "/private/tmp/kcode-1"
TOKEN = re.compile(r'\s*(?:;[^\n]*\n\s*)*(?:(\()|(\))|#"([^"]*)"|"((?:[^"\\]|\\.)*)"|([^\s()"]+))')
Form = list["Form"] | str


def forms(text: str) -> list[Form]:
    """S-expressions; texts are words, with their escapes undone."""
    stack: list[list[Form]] = [[]]
    for match in TOKEN.finditer(text.rstrip()):
        opening, closing, raw, quoted, word = match.groups()
        if opening:
            stack.append([])
        elif closing:
            done = stack.pop()
            stack[-1].append(done)
        else:
            plain = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else None
            stack[-1].append(next(one for one in (raw, plain, word) if one is not None))
    assert len(stack) == 1
    return stack[0]


def is_matched(one: Form, path: str) -> bool:
    assert isinstance(one, list)
    kind, value = one[0], one[1]
    if isinstance(value, list):
        value = SESSION if value == ["param", "SESSION"] else "?"
    if kind == "literal":
        return path == value
    if kind == "subpath":
        return path == value or path.startswith(f"{value.rstrip('/')}/")
    return kind == "regex" and re.search(value, path) is not None


def allows(profile: str, operation: str, path: str) -> bool:
    decision = False
    for form in forms(profile):
        assert isinstance(form, list)
        if form[0] not in {"allow", "deny"}:
            continue
        names = [part for part in form[1:] if isinstance(part, str)]
        filters = [part for part in form[1:] if isinstance(part, list)]
        named = any(fnmatchcase(operation, name) or name == "default" for name in names)
        if named and (not filters or any(is_matched(one, path) for one in filters)):
            decision = form[0] == "allow"
    return decision


@pytest.fixture
def profile(policy: Policy, workspace: Path) -> str:
    protected = [workspace / "deep/.git/config", workspace / "deep/.git/hooks"]
    return seatbelt_profile(policy, [Path("/Users/ada/.pyenv")], protected)


def test_only_the_workspace_and_the_session_are_written(profile: str, workspace: Path, home: Path) -> None:
    for path in (f"{workspace}/a", f"{workspace}/deep/b", f"{SESSION}/home/.cache/x"):
        assert allows(profile, "file-write-create", path), path
    for path in (
        f"{home}/.bashrc",
        "/etc/hosts",
        "/usr/local/bin/x",
        f"{workspace}-beside/a",
        "/private/tmp/other",
        "/dev/disk0",
    ):
        assert not allows(profile, "file-write-create", path), path
    assert allows(profile, "file-write-data", "/dev/null")


def test_home_and_its_keys_are_not_read_and_the_toolchains_are(profile: str, home: Path, workspace: Path) -> None:
    for path in ("/usr/bin/git", "/Users/ada/.pyenv/versions/3", f"{workspace}/a", "/bin/bash", "/dev/urandom"):
        assert allows(profile, "file-read-data", path), path
    for path in (
        f"{home}/.ssh/id_ed25519",
        str(home),
        "/Users/ada",
        "/Library/Keychains/System.keychain",
        "/etc/../private/etc/ssh/k",
    ):
        assert not allows(profile, "file-read-data", path), path
    assert not allows(profile, "file-read-data", "/private/etc/ssh/ssh_host_rsa_key")
    # Paths lead through what cannot be listed.
    assert allows(profile, "file-read-metadata", "/Users/ada")
    assert not allows(profile, "file-read-metadata", "/Users/ada/.ssh")


def test_what_is_protected_stays_and_no_folder_above_it_moves(profile: str, workspace: Path) -> None:
    for name in ("deep/.git/config", "deep/.git/hooks/pre-commit"):
        assert not allows(profile, "file-write-data", f"{workspace}/{name}"), name
    for name in ("deep", "deep/.git", ""):
        assert not allows(profile, "file-write-unlink", f"{workspace}/{name}".rstrip("/")), name
    assert allows(profile, "file-write-unlink", f"{workspace}/deep/.git/index")
    assert allows(profile, "file-write-create", f"{workspace}/deep/.git/objects/ab/cd")


def test_what_steers_programs_is_not_made_anew_in_any_spelling(profile: str, workspace: Path) -> None:
    for name in (
        ".envrc",
        "a/b/.envrc",
        ".ENVRC",
        ".vscode/tasks.json",
        ".git/commondir",
        ".GIT/hooks/pre-commit",
        ".git/config",
    ):
        assert not allows(profile, "file-write-create", f"{workspace}/{name}"), name
    for name in (".envrc.sample", "my.envrc", "a.git/config", ".gitignore", ".git/HEAD", "xenvrc"):
        assert allows(profile, "file-write-create", f"{workspace}/{name}"), name


def test_a_reader_writes_nothing_but_its_session(policy: Policy, workspace: Path) -> None:
    profile = seatbelt_profile(replace(policy, profile="read-only"), [], [])
    assert allows(profile, "file-read-data", f"{workspace}/a")
    assert not allows(profile, "file-write-create", f"{workspace}/a")
    assert allows(profile, "file-write-create", f"{SESSION}/a")


def rules(profile: str, word: str) -> Iterator[Form]:
    return (form for form in forms(profile) if isinstance(form, list) and word in str(form[1]))


def test_the_network_is_off_or_the_proxy_or_on_but_never_the_sockets_of_services(policy: Policy) -> None:
    session: Form = ["subpath", ["param", "SESSION"]]
    own: Form = ["allow", "network*", ["remote", "unix-socket", session], ["local", "unix-socket", session]]
    assert list(rules(seatbelt_profile(policy, [], []), "network")) == [own]
    network, hosts = parse_network("example.org")
    listed = replace(policy, network=network, hosts=hosts)
    proxy: Form = ["remote", "ip", ["string-append", "localhost:", ["param", "PROXY_PORT"]]]
    assert list(rules(seatbelt_profile(listed, [], []), "network")) == [own, ["allow", "network-outbound", proxy]]
    assert parameters_of(listed) == ("SESSION", "PROXY_PORT")
    opened = list(rules(seatbelt_profile(replace(policy, network="on"), [], []), "network"))
    assert opened.index(["allow", "network*"]) < opened.index(["deny", "network-outbound", ["remote", "unix-socket"]])


def test_a_name_cannot_add_a_rule(policy: Policy, tmp_path: Path) -> None:
    folder = Path('/Users/ada/x") (allow default) ("\\')
    text = seatbelt_profile(replace(policy, profile="read-only", readable=(folder,)), [], [])
    assert allows(text, "file-read-data", f"{folder}/a")
    assert not allows(text, "file-write-create", "/etc/hosts")
    for name in ('a"b', "a\nb"):
        with pytest.raises(SandboxUnavailableError, match="rename"):
            seatbelt_profile(replace(policy, workspace=tmp_path / name), [], [])


async def test_it_is_explained_on_any_system_and_runs_nothing(policy: Policy, repository: Path) -> None:
    wanted = replace(policy, backend="seatbelt")
    explanation = await explain(wanted)
    assert not explanation.stands
    profile = explanation.document["seatbelt"]
    assert isinstance(profile, str)
    assert not allows(profile, "file-write-data", f"{repository}/.git/hooks/pre-commit")
    assert "not tried on macOS" in json.dumps(explanation.sections)
    assert not (repository / ".git/commondir").exists()
    with pytest.raises(SandboxUnavailableError, match="explain --backend seatbelt"):
        open_sandbox(wanted)
